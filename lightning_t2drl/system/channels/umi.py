"""Urban microcells, street canyon: 3GPP TR 38.901, tables 7.4.1-1, 7.4.2-1, 7.5-6 and 7.6.3.1-2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.checks import within
from lightning_t2drl.errors import UserError
from lightning_t2drl.system.channels.base import Channel, Links
from lightning_t2drl.system.scenario import Scenario

LIGHT = 3e8  # m/s, the value that the report uses
CLUTTER = 1.0  # h_E, effective height of what stands around, m
SIGHT_DISTANCE = 50.0  # over which line of sight is correlated, m
SHADOWING = ((4.0, 10.0), (7.82, 13.0))  # with and without line of sight: standard deviation, dB, and distance, m


@dataclass
class UMiConfig:
    """Keys of `configs/env/channel/umi.yaml`."""

    _target_: str = ""
    carrier_ghz: float = 3.5
    station_height: float = 10.0
    user_height: float = 1.5
    shadowing: bool = True

    def __post_init__(self) -> None:
        within("", self, carrier_ghz=(0.5, 100), station_height=(1.5, 100), user_height=(1.5, 22.5))


class UMiChannel(Channel):
    """Each link is in line of sight or not, and stays so while its user stands still.

    Behind every link is a standard normal number X, which forgets the past as the user walks: it is multiplied by
    exp(-moved / 50 m) and refilled. A link is in line of sight while Phi(X) < P_LOS(d), so that the share of those in
    sight at every distance is P_LOS. Shadowing is another such number, in units of its standard deviation.
    """

    Config = UMiConfig
    pairs = 1

    def __init__(self, scenario: Scenario, config: UMiConfig) -> None:
        super().__init__(scenario, config)
        if config.shadowing and scenario.shadowing_db:
            raise UserError(
                "env.shadowing_db: umi has shadowing of its own; set env.channel.shadowing=false to use this"
            )
        self.height = config.station_height - config.user_height
        free = 20 * math.log10(config.carrier_ghz)
        self.sight = 32.4 + free
        self.no_sight = 22.4 + 21.3 * math.log10(config.carrier_ghz) - 0.3 * (config.user_height - 1.5)
        above = (config.station_height - CLUTTER) * (config.user_height - CLUTTER)
        self.breakpoint = 4 * above * config.carrier_ghz * 1e9 / LIGHT

    def sight_probability(self, distance: Tensor) -> Tensor:
        """P_LOS of links this long on the ground, m [*]."""
        far = distance.clamp_min(18.0)
        return 18 / far + (-far / 36).exp() * (1 - 18 / far)

    def losses(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Path loss in dB with and without line of sight, [*] each, of links this long on the ground, m [*]."""
        ground = distance.clamp_min(self.scenario.min_distance)
        length = (ground.square() + self.height**2).sqrt().log10()
        near = self.sight + 21 * length
        beyond = self.sight + 40 * length - 9.5 * math.log10(self.breakpoint**2 + self.height**2)
        sight = torch.where(ground <= self.breakpoint, near, beyond)
        return sight, torch.maximum(sight, self.no_sight + 35.3 * length)

    def gain(self, distance: Tensor) -> Tensor:
        """Without a state of its own, a link has the mean loss in dB at its distance."""
        sight, no_sight = self.losses(distance)
        chance = self.sight_probability(distance)
        return 10 ** (-(chance * sight + (1 - chance) * no_sight) / 10)

    def long_term(self, links: Links) -> tuple[Tensor, Tensor | None]:
        memory: Any = links.memory
        if memory is None:
            memory = links.normal
        elif links.moved is not None:
            memory = torch.stack((
                walked(memory[..., 0], links.normal[..., 0], links.moved / SIGHT_DISTANCE),
                walked(memory[..., 1], links.normal[..., 1], links.moved / self._shadow(memory, links.distance)[1]),
            ), -1)  # fmt: skip
        sight, no_sight = self.losses(links.distance)
        loss = torch.where(self._in_sight(memory, links.distance), sight, no_sight)
        if self.config.shadowing:
            loss = loss + self._shadow(memory, links.distance)[0] * memory[..., 1]
        return 10 ** (-loss / 10), memory

    def _in_sight(self, memory: Tensor, distance: Tensor) -> Tensor:
        return torch.special.ndtr(memory[..., 0]) < self.sight_probability(distance)

    def _shadow(self, memory: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviation of the shadowing, dB, and its distance, m, of every link."""
        seen = self._in_sight(memory, distance)
        (with_db, with_m), (without_db, without_m) = SHADOWING
        return torch.where(seen, with_db, without_db), torch.where(seen, with_m, without_m)


def walked(old: Tensor, fresh: Tensor, way: Tensor) -> Tensor:
    """Standard normal numbers after a way in correlation distances: e^-way old + sqrt(1 - e^-2way) fresh."""
    kept = (-way).exp()
    return kept * old + (1 - kept.square()).sqrt() * fresh
