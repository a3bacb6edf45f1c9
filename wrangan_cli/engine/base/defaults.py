"""What is taken where the user names nothing; imports nothing, so that the command line starts quickly."""

DEFAULT_MODEL = "ffhq"
"""Name of a bundled model."""
