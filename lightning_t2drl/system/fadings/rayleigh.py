"""Fading without a line of sight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.fadings.base import Fading


@dataclass
class RayleighConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class RayleighFading(Fading):
    """|z|^2 with z ~ CN(0, 1): exponential."""

    Config = RayleighConfig

    def power(self, normal: Tensor) -> Tensor:
        return 0.5 * normal.square().sum(-1)
