"""Evaluation during training, on worlds and random numbers of its own."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_t2drl.loop.diagnosis import diagnose
from lightning_t2drl.loop.evaluation import evaluate, summarise
from lightning_t2drl.loop.keys import EvaluationConfig

REPORTED = ("utility", "hit_ratio", "violation_ratio", "quality", "delay")


class PeriodicEvaluation(L.Callback):
    """Evaluates without exploration before the first frame and every `every_n_frames`, always on the same worlds."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.config.every_n_frames and pl_module.frame == 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.config.every_n_frames and pl_module.frame % self.config.every_n_frames == 0:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: Any) -> None:
        # All ranks have the same parameters; each evaluates, so that none gets ahead of the others.
        c = self.config
        result = summarise(evaluate(pl_module.scenario, pl_module.cacher, pl_module.allocator, c.episodes, c.seed))
        worlds = [c.episodes, c.seed]
        pl_module.last_evaluation = {"frame": pl_module.frame, "utility": result["utility"]["mean"], "worlds": worlds}
        row: dict[str, float] = {"slots": pl_module.slots, "gradient_steps": pl_module.gradient_steps}
        for name in REPORTED:
            row[f"evaluation/{name}"] = result[name]["mean"]
            row[f"evaluation/{name}_standard_error"] = result[name]["standard_error"]
        if c.diagnosis:
            measured = diagnose(pl_module.scenario, pl_module.cacher, pl_module.allocator, c.seed)
            row |= {f"evaluation/diagnosis_{name}": value for name, value in measured.items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=pl_module.frame)
