"""The path loss of macro cells, as in the default scenario."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.channel import path_gain
from lightning_t2drl.system.channels.base import Channel


@dataclass
class MacroConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class MacroChannel(Channel):
    """PL = 128.1 + 37.6 log10(d_km) dB, d clamped to `min_distance`."""

    Config = MacroConfig

    def gain(self, distance: Tensor) -> Tensor:
        return path_gain(self.scenario, distance)
