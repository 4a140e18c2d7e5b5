"""Time limits of tests: one environment variable scales them all, for machines under load."""

import os

SCALE = float(os.environ.get("T2DRL_TEST_TIMEOUT_SCALE", "1"))


def seconds(limit):
    return limit * SCALE
