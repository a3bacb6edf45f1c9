"""Defaults of the command line; imports nothing, so that it starts quickly."""

DEFAULT_MODEL = "ffhq"
"""Name of a bundled model."""
