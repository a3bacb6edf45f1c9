"""Benchmarks and studies, run by hand: `python -m tests.benchmarks.<name> --help`."""
