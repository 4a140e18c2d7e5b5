"""Checkpoints at frame boundaries, the newest few and the best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_t2drl.files import link_atomically, remove_leftovers
from lightning_t2drl.loop.checkpoints import BEST, in_order


class FrameCheckpoint(Checkpoint):
    """Saves every `every_n_frames` frames and at the end; after the evaluation, so that it is part of what is saved.

    Args:
        directory: where `frame=N.ckpt` and `best.ckpt` (another name of the best evaluated one) go.
        every_n_frames: frames between two checkpoints.
        keep: newest checkpoints kept.
    """

    def __init__(self, directory: Path, every_n_frames: int, keep: int) -> None:
        super().__init__()
        self.directory = directory
        self.every_n_frames = every_n_frames
        self.keep = keep
        self.best_utility = float("-inf")
        self.seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and self.directory.exists():
            remove_leftovers(self.directory)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.frame % self.every_n_frames == 0 or pl_module.frame == pl_module.frames or trainer.should_stop:
            self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write this frame's checkpoint (all ranks take part) and let old ones go."""
        start = time.perf_counter()
        evaluated = pl_module.last_evaluation
        is_best = evaluated is not None and evaluated["frame"] == pl_module.frame
        is_best = is_best and evaluated["utility"] > self.best_utility
        if is_best:
            self.best_utility = evaluated["utility"]
        path = self.directory / f"frame={pl_module.frame:09d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            if is_best:
                link_atomically(path, self.directory / BEST)
            for old in in_order(self.directory)[: -self.keep]:
                old.unlink()
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        return {"best_utility": self.best_utility}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_utility = state_dict["best_utility"]
