"""The running means of the training log; `slot_metrics` is what they are taken of."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.system.metrics import DELAY_PARTS, service_sums, slot_metrics

__all__ = ["DELAY_PARTS", "Meters", "service_sums", "slot_metrics"]

RENAMED = {"tv": "metric"}  # since checkpoints that may be resumed


class Meters:
    """Means since the last log, kept as tensors so that nothing waits for a device, plus a clock."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.start_clock(0)

    def start_clock(self, slots: int) -> None:
        self._time, self._slots = time.perf_counter(), slots

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one observation of each name (the mean over its elements)."""
        for name, value in values.items():
            value = value.detach().mean()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, slots: int) -> dict[str, float]:
        """Means by name and slots per second; starts anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        now = time.perf_counter()
        means["slots_per_second"] = (slots - self._slots) / max(now - self._time, 1e-9)
        self.sums, self.counts = {}, {}
        self.start_clock(slots)
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.sums = {RENAMED.get(name, name): value.to(device) for name, value in state["sums"].items()}
        self.counts = {RENAMED.get(name, name): count for name, count in state["counts"].items()}
