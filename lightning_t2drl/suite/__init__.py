"""Suites of runs, their statistics and figures."""
