"""Checkpoints at frame boundaries, the newest few and the best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import link_atomically
from lightning_t2drl.loop.checkpoints import BEST, DamagedCheckpoint, in_order, load_checkpoint, set_aside
from lightning_t2drl.loop.state import KEY


class FrameCheckpoint(Checkpoint):
    """Saves every `every_n_frames` frames, at the end, and where an evaluation is the best so far.

    It must come after the evaluation, so that the evaluation is in the checkpoint. Lightning's `after_save_checkpoint`
    tells loggers of every save: what was logged until then is in the checkpoint.

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
        self.best_frame: int | None = None
        self.best_worlds: list[int] | None = None  # episodes and seed of the evaluation that found it
        self.seconds = 0.0
        self.saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.settle()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = pl_module.frame % self.every_n_frames == 0 or pl_module.frame == pl_module.frames or trainer.should_stop
        is_best = self._is_best(trainer, pl_module)
        if due or is_best:
            self._save(trainer, pl_module, is_best)

    def _is_best(self, trainer: L.Trainer, pl_module: Any) -> bool:
        """Whether this frame was evaluated and is the best so far, by rank 0, which keeps the score.

        A score on other worlds says nothing beside this one: the first evaluation after such a change is the best.
        """
        evaluated = pl_module.last_evaluation
        if evaluated is None or evaluated["frame"] != pl_module.frame:
            return False
        better = evaluated["utility"] > self.best_utility or self.best_worlds not in (None, evaluated["worlds"])
        mine = trainer.is_global_zero and better
        is_best = trainer.strategy.reduce_boolean_decision(mine, all=False)
        if is_best:
            self.best_utility, self.best_frame = evaluated["utility"], pl_module.frame
            self.best_worlds = evaluated["worlds"]
        return is_best

    def _save(self, trainer: L.Trainer, pl_module: Any, is_best: bool) -> None:
        """Write this frame's checkpoint (all ranks take part) and delete old ones."""
        start = time.perf_counter()
        path = self.path(pl_module.frame)
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            if is_best:
                link_atomically(path, self.directory / BEST)
            for old in in_order(self.directory)[: -self.keep]:
                old.unlink()
        self.seconds += time.perf_counter() - start
        self.saved += 1
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]  # Lightning means its own class

    def path(self, frame: int) -> Path:
        """Where a frame's checkpoint goes."""
        return self.directory / f"frame={frame:09d}.ckpt"

    def settle(self) -> None:
        """Make the best score and the best file agree, wherever the run goes on from.

        A kill may come between a checkpoint and its second name; damage or a branch may take the file away. A score
        whose file is gone goes as well: the next evaluation is then the best.
        """
        best = self.directory / BEST
        held = None
        if best.exists():
            try:
                held = load_checkpoint(best)[KEY]["frame"]
            except DamagedCheckpoint:
                set_aside(best)
            except UserError:  # of another origin; it is replaced when there is a better one
                held = None
        if self.best_frame is None and self.best_utility > float("-inf"):  # of before the frame was noted
            self.best_frame = held
        if held is not None and held == self.best_frame:
            return
        if self.best_frame is not None and self.path(self.best_frame).exists():
            link_atomically(self.path(self.best_frame), best)
            return
        best.unlink(missing_ok=True)
        self.best_utility, self.best_frame = float("-inf"), None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_utility": self.best_utility,
            "best_frame": self.best_frame,
            "best_worlds": self.best_worlds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_utility, self.best_frame = state_dict["best_utility"], state_dict.get("best_frame")
        self.best_worlds = state_dict.get("best_worlds")
