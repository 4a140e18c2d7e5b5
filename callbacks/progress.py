"""A progress bar that says what a run is doing: frame, utility, hit ratio, speed and time left."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class FrameProgress(L.Callback):
    """A rich progress bar over frames, updated with the log, so that it takes no time in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self.progress = Progress(
            TextColumn("frame {task.completed}/{task.total}"),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            refresh_per_second=2,
        )
        every = pl_module.loop.log_every_n_frames
        self.task = self.progress.add_task(
            "train",
            total=pl_module.frames,
            completed=pl_module.frame,
            status=f"figures every {every} frames",
        )
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.progress is None:
            return
        self.progress.update(self.task, completed=pl_module.frame)
        m = pl_module.last_log
        if m:
            status = f"utility {m['utility']:.3f} hit ratio {m['hit_ratio']:.3f} {m['slots_per_second']:.0f} slots/s"
            self.progress.update(self.task, status=status)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
