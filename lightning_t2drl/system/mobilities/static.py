"""Users that stand still."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.mobilities.base import Mobility, Walk
from lightning_t2drl.system.mobility import uniform_position


@dataclass
class StaticConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class StaticMobility(Mobility):
    """Every episode draws new places, uniform in the disc; there users stay."""

    Config = StaticConfig

    def start(self, time: Tensor, uniform: Tensor) -> Walk:
        return {"position": uniform_position(self.scenario, uniform[..., :2])}

    def move(self, state: Walk, time: Tensor, normal: Tensor, uniform: Tensor) -> Walk:
        return {"position": state["position"]}
