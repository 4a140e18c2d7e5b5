"""Run a suite of schemes over seeds and settings: python benchmark.py suite=headline budget=small."""

from lightning_t2drl.benchmarking import run_suite
from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import BenchmarkConfig

if __name__ == "__main__":
    entry_point("benchmark", BenchmarkConfig, run_suite)
