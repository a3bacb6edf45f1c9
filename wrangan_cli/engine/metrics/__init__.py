"""Metrics: one file each, its protocol in the docstring."""
