"""Runs a checkout's train.py with a stopwatch: `python benchmarks/clocked.py TREE CLOCK.csv KEY=VALUE ...`.

Works with any commit's code: it only knows Lightning. CLOCK.csv gets a row per frame: CPU and wall seconds of
training so far, evaluations, checkpoints and imports not counted.
"""

from __future__ import annotations

import csv
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L


class Clock:
    """CPU seconds of this process and wall seconds while it runs."""

    def __init__(self) -> None:
        self.total = [0.0, 0.0]
        self.start: tuple[float, float] | None = None

    @staticmethod
    def now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def go(self) -> None:
        self.start = self.now()

    def stop(self) -> None:
        if self.start is not None:
            self.total = [t + b - a for t, a, b in zip(self.total, self.start, self.now(), strict=True)]
        self.start = None


class Before(L.Callback):
    """The first of all callbacks: the frame is over."""

    def __init__(self, clock: Clock, path: Path) -> None:
        self.clock, self.path = clock, path

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.clock.stop()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([pl_module.frame, pl_module.gradient_steps, *self.clock.total])


class After(L.Callback):
    """The last: the next frame begins."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, *_: Any) -> None:
        self.clock.go()

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.go()


def main(tree: str, path: str, *overrides: str) -> None:
    """Train as `python train.py OVERRIDES` does in `tree`."""
    clock, fit = Clock(), L.Trainer.fit

    def clocked(trainer: L.Trainer, *args: Any, **keys: Any) -> None:
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, Before(clock, Path(path)))
        callbacks.append(After(clock))
        fit(trainer, *args, **keys)

    L.Trainer.fit = clocked  # type: ignore[method-assign,assignment]
    sys.argv = [str(Path(tree, "train.py")), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
