"""Run a suite of schemes over seeds and settings: python benchmark.py suite=headline budget=small."""

from lightning_t2drl.run.cli import entry_point
from lightning_t2drl.run.schemas import BenchmarkConfig
from lightning_t2drl.suite.benchmark import run_suite

if __name__ == "__main__":
    entry_point("benchmark", BenchmarkConfig, run_suite)
