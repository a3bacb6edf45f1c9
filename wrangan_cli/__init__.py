"""wrangan: invert photographs into a randomised StyleGAN2 and keep them editable."""

__version__ = "0.1.0"
