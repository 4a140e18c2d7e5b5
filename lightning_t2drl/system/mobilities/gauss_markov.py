"""Gauss-Markov mobility, as in the default scenario."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.mobilities.base import Mobility, Walk
from lightning_t2drl.system.mobility import move, uniform_position
from lightning_t2drl.system.noise import in_planes, normal_pairs


@dataclass
class GaussMarkovConfig:
    """No keys: they are `env.mobility_memory`, `env.mean_speed` and `env.speed_deviation`."""

    _target_: str = ""


class GaussMarkovMobility(Mobility):
    """Velocities with a memory, reflected at the edge of the disc; they start in their stationary distribution."""

    Config = GaussMarkovConfig

    def start(self, time: Tensor, uniform: Tensor) -> Walk:
        heading = 2 * math.pi * uniform[..., 2]
        mean_velocity = self.scenario.mean_speed * in_planes(heading.cos(), heading.sin())
        spread = self.scenario.speed_deviation * normal_pairs(uniform[..., 3], uniform[..., 4])
        return {
            "position": uniform_position(self.scenario, uniform[..., :2]),
            "velocity": mean_velocity + spread,
            "mean_velocity": mean_velocity,
        }

    def move(self, state: Walk, time: Tensor, normal: Tensor, uniform: Tensor) -> Walk:
        position, velocity, mean_velocity = move(
            self.scenario, state["position"], state["velocity"], state["mean_velocity"], normal
        )
        return {"position": position, "velocity": velocity, "mean_velocity": mean_velocity}
