"""Random waypoints: walk straight to a place, rest, choose another."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_t2drl.checks import Misfit, within
from lightning_t2drl.system.mobilities.base import Mobility, Walk
from lightning_t2drl.system.mobility import uniform_position


@dataclass
class RandomWaypointConfig:
    """Keys of `configs/env/mobility/random_waypoint.yaml`."""

    _target_: str = ""
    speed: list[float] = field(default_factory=lambda: [0.5, 2.0])
    pause: float = 0.0

    def __post_init__(self) -> None:
        within("", self, pause=(0, 1e9))
        if len(self.speed) != 2 or not 0 < self.speed[0] <= self.speed[1] <= 1e6:
            raise Misfit(f"speed: {list(self.speed)} is not a range [low, high] above 0 m/s")


class RandomWaypointMobility(Mobility):
    """Waypoints are uniform in the disc, speeds uniform in their range. Who arrives within a slot rests until it ends,
    and for `pause` seconds more.
    """

    Config = RandomWaypointConfig
    uniforms = 3

    def start(self, time: Tensor, uniform: Tensor) -> Walk:
        waypoint, speed = self._choose(uniform[..., 2:])
        position = uniform_position(self.scenario, uniform[..., :2])
        return {"position": position, "waypoint": waypoint, "speed": speed, "rest": torch.zeros_like(speed)}

    def move(self, state: Walk, time: Tensor, normal: Tensor, uniform: Tensor) -> Walk:
        duration = self.scenario.slot_duration
        rest = state["rest"]
        reach = state["speed"] * (duration - rest).clamp_min(0.0)
        way = state["waypoint"] - state["position"]
        length = torch.linalg.vector_norm(way, dim=-1)
        arrives = length <= reach
        share = torch.where(arrives, 1.0, reach / length.clamp_min(1e-9)).unsqueeze(-1)
        waypoint, speed = self._choose(uniform)
        return {
            "position": state["position"] + share * way,
            "waypoint": torch.where(arrives.unsqueeze(-1), waypoint, state["waypoint"]),
            "speed": torch.where(arrives, speed, state["speed"]),
            "rest": torch.where(arrives, self.config.pause, (rest - duration).clamp_min(0.0)),
        }

    def _choose(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.config.speed
        return uniform_position(self.scenario, uniform[..., :2]), low + (high - low) * uniform[..., 2]
