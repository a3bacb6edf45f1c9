"""Stress tests with damaged headers, a hostile folder and `kill -9`: `python -m tests.benchmarks.stress`."""
