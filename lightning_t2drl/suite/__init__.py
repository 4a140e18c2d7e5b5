"""Suites of runs, their statistics and pictures."""
