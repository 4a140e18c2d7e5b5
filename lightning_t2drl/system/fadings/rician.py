"""Fading with a line of sight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.channel import rician_power
from lightning_t2drl.system.fadings.base import Fading


@dataclass
class RicianConfig:
    """No keys: the factor is `env.rician_factor_db`."""

    _target_: str = ""


class RicianFading(Fading):
    """|sqrt(K/(K+1)) + sqrt(1/(K+1)) z|^2 with z ~ CN(0, 1) and K = `rician_factor`."""

    Config = RicianConfig

    def power(self, normal: Tensor) -> Tensor:
        return rician_power(self.scenario.rician_factor, normal)
