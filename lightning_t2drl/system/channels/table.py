"""Path losses from a file: by distance, or as they were measured in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.channels.base import Channel, Links
from lightning_t2drl.system.recordings import Array, Recording, check_start, whole_slots
from lightning_t2drl.system.scenario import Scenario

KEY = "env.channel.file"


@dataclass
class TableConfig:
    """Keys of `configs/env/channel/table.yaml`."""

    _target_: str = ""
    file: str = ""
    start: float | None = None

    def __post_init__(self) -> None:
        check_start(self.start)


class TableChannel(Channel):
    """A file with the columns `distance` (m) and `path_loss` (dB), linear in between and flat beyond both ends; or
    with `time` (s) or `slot`, `path_loss` and, where links differ, `user` and `cell`, each holding until the next.
    """

    Config = TableConfig

    def __init__(self, scenario: Scenario, config: TableConfig) -> None:
        super().__init__(scenario, config)
        recording = Recording(KEY, config.file)
        self.digest = recording.digest
        loss = recording.numbers("path_loss", -200, 500)
        device = scenario.sites.device
        self.knots: Tensor | None = None
        if recording.has("distance"):
            if config.start is not None:
                raise UserError(
                    f"env.channel.start: counts for nothing with {config.file}, whose losses are by distance"
                )
            distance = recording.numbers("distance", 0)
            recording.refuse(np.diff(distance, prepend=-1.0) <= 0, lambda row: "distance does not rise")
            self.knots = torch.tensor(distance, device=device).float()
            self.loss = torch.tensor(loss, device=device).float()
        else:
            self.loss = torch.tensor(self._in_time(recording, loss), device=device).float()
            self.covers = len(self.loss)

    def _in_time(self, recording: Recording, loss: Array) -> Array:
        """Path loss in dB of every slot and link [S, B, U]."""
        s = self.scenario
        slot = whole_slots(recording.seconds(s.slot_duration), self.config.start, s.slot_duration)
        users = recording.whole("user", s.users, "env.users") if recording.has("user") else None
        cells = recording.whole("cell", s.cells, "env.cells") if recording.has("cell") else None
        slots = int(slot.max()) + 1
        if slots < 1:
            raise UserError(f"{recording.label} ends before env.channel.start {self.config.start} s")
        recording.small_enough(slots, s.cells, s.users)
        table = np.full((slots, s.cells, s.users), np.nan)
        cell = np.arange(s.cells)[None, :] if cells is None else cells[:, None]  # a row of no cell is of all
        user = np.arange(s.users)[None, :] if users is None else users[:, None]
        table[slot.clip(0)[:, None, None], cell[:, :, None], user[:, None, :]] = loss[:, None, None]
        known = ~np.isnan(table)
        if not known.any(0).all():
            cell, user = np.argwhere(~known.any(0))[0]
            raise UserError(f"{recording.label} says nothing of cell {cell}, user {user}")
        last = np.maximum.accumulate(np.where(known, np.arange(slots)[:, None, None], -1), 0)
        last = np.where(last < 0, known.argmax(0), last)  # before its first row, a link has that row's loss
        return np.take_along_axis(table, last, 0)

    def gain(self, distance: Tensor) -> Tensor:
        if self.knots is None:  # of no distance: the mean loss
            return (10 ** (-self.loss.mean() / 10)).expand(distance.shape)
        if len(self.knots) == 1:
            return 10 ** (-self.loss / 10).expand(distance.shape)
        upper = torch.searchsorted(self.knots, distance.contiguous()).clamp(1, len(self.knots) - 1)
        low, high = self.knots[upper - 1], self.knots[upper]
        share = ((distance - low) / (high - low)).clamp(0, 1)
        return 10 ** (-torch.lerp(self.loss[upper - 1], self.loss[upper], share) / 10)

    def long_term(self, links: Links) -> tuple[Tensor, Tensor | None]:
        if self.knots is not None:
            return self.gain(links.distance.clamp_min(self.scenario.min_distance)), None
        return 10 ** (-self.loss[links.time.clamp_max(len(self.loss) - 1)] / 10), None
