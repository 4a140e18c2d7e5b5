"""No fading."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.fadings.base import Fading


@dataclass
class NoFadingConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class NoFading(Fading):
    """|h|^2 = 1: links have their long-term gain."""

    Config = NoFadingConfig

    def power(self, normal: Tensor) -> Tensor:
        return normal.new_ones(normal.shape[:-1])
