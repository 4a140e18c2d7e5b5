"""Evaluate a checkpoint or a pair of policies: python evaluate.py checkpoint=runs/a/checkpoints/last episodes=200."""

from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import EvaluateConfig
from lightning_t2drl.evaluating import run_evaluation

if __name__ == "__main__":
    entry_point("evaluate", EvaluateConfig, run_evaluation)
