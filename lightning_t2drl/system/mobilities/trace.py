"""Positions from a file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.mobilities.base import Mobility, Walk
from lightning_t2drl.system.recordings import Recording, check_columns, check_start, slot_of, whole_slots
from lightning_t2drl.system.scenario import Scenario

KEY = "env.mobility.file"
FARTHEST = 1e7  # m


@dataclass
class TraceMobilityConfig:
    """Keys of `configs/env/mobility/trace.yaml`."""

    _target_: str = ""
    file: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    start: float | None = None

    def __post_init__(self) -> None:
        check_columns(self.columns, ("time", "slot", "user", "x", "y"))
        check_start(self.start)


class TraceMobility(Mobility):
    """A file with the columns `time` (s) or `slot`, `user`, `x` and `y` (m). Between two rows a user walks straight;
    before its first and after its last it stands.
    """

    Config = TraceMobilityConfig

    def __init__(self, scenario: Scenario, config: TraceMobilityConfig) -> None:
        super().__init__(scenario, config)
        recording, length = Recording(KEY, config.file, config.columns), scenario.slot_duration
        self.digest = recording.digest
        seconds = recording.seconds(length)
        user = recording.whole("user", scenario.users, "env.users")
        places = np.stack([recording.numbers(axis, -FARTHEST, FARTHEST) for axis in ("x", "y")], -1)
        slots = int(whole_slots(seconds, config.start, length).max()) + 1
        if slots < 1:
            raise UserError(f"{recording.label} ends before env.mobility.start {config.start} s")
        recording.small_enough(slots, scenario.users, 2)
        step = length or 1.0
        start = slot_of(seconds[0] if config.start is None else config.start, step) * step
        table, times = np.empty((slots, scenario.users, 2)), start + step * np.arange(slots)
        for number in range(scenario.users):
            own = user == number
            if not own.any():
                raise UserError(f"{recording.label} says nothing of user {number}")
            for axis in (0, 1):
                table[:, number, axis] = np.interp(times, seconds[own], places[own, axis])
        self.places = torch.tensor(table, device=scenario.sites.device).float()
        self.covers = slots

    def start(self, time: Tensor, uniform: Tensor) -> Walk:
        return {"position": self.places[time.clamp_max(len(self.places) - 1)]}

    def move(self, state: Walk, time: Tensor, normal: Tensor, uniform: Tensor) -> Walk:
        return self.start(time, uniform)
