"""Damaged headers, hostile folders and `kill -9`: `python -m tests.benchmarks.stress`."""
