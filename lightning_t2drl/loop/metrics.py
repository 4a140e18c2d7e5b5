"""Metrics of served slots, and the running means of the training log."""

from __future__ import annotations

import time
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

# A bandwidth share of 0 means an infinite delay; in means it counts as this many deadlines.
DELAY_CAP = 10.0

MEANS = (
    ("utility", "utility"),
    ("hit_ratio", "hit"),
    ("violation_ratio", "violated"),
    ("quality", "quality"),
    ("tv", "tv"),
)
DELAY_PARTS = ("access_delay", "generation_delay", "backhaul_delay")


def slot_metrics(scenario: Scenario, served: TensorDictBase, attached: Tensor) -> dict[str, Tensor]:
    """Means over the users present, one value per world.

    Args:
        served: what `serve` returned [N, B].
        attached: bool [N, B, U].

    Returns:
        [N] each: `utility`, `hit_ratio`, `violation_ratio`, `quality`, `tv`, `delay` and its parts (s), the paper's
        `weighted_cost` alpha TV + (1 - alpha) D and, with several cells, `handover_ratio` (users taken over in the
        slot) and, with an edge link, `nearby_ratio` (users served from another cell's model).
    """
    users = attached.sum((-1, -2)).clamp_min(1)
    cap = DELAY_CAP * scenario.deadline

    def mean(value: Tensor) -> Tensor:
        return value.sum((-1, -2)) / users

    out = {name: mean(served[key]) for name, key in MEANS}
    for name, key in (("handover_ratio", "handover"), ("nearby_ratio", "nearby")):
        if (flags := served.get(key, None)) is not None:
            out[name] = mean(flags)
    for key in ("delay", *DELAY_PARTS):
        out[key] = mean(served[key].clamp_max(cap))
    out["weighted_cost"] = scenario.alpha * out["tv"] + (1 - scenario.alpha) * out["delay"]
    return out


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
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])
