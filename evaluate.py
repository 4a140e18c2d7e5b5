"""Evaluate a checkpoint or a pair of policies: python evaluate.py checkpoint=runs/a/checkpoints/last episodes=200."""

from lightning_t2drl.run.cli import entry_point
from lightning_t2drl.run.evaluate import run_evaluation
from lightning_t2drl.run.schemas import EvaluateConfig

if __name__ == "__main__":
    entry_point("evaluate", EvaluateConfig, run_evaluation)
