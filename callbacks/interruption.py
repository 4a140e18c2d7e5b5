"""Ctrl-C, SIGTERM and SIGUSR1 end a run at the next frame boundary, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm can send the last before it ends a job


class GracefulStop(L.Callback):
    """Turns the first signal into a stop after the frame in progress; a second SIGINT stops at once.

    Must come before the checkpoint callback, which sees `trainer.should_stop` and saves.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():  # in other threads Python allows no handlers
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in self._previous:  # Lightning sets its own in between
            signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All ranks stop at the same frame, or one would wait for ever for the others' gradients.
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
