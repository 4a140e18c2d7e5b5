"""Requests from a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.demands.base import Demand, Recorded
from lightning_t2drl.system.recordings import Array, Recording, check_columns, check_start, slot_of, whole_slots
from lightning_t2drl.system.scenario import Scenario

KEY = "env.demand.file"
BITS_PER_MB = 8e6
LARGEST_MB = 1e9
LONGEST_WAIT = 100  # slots
COLUMNS = ("time", "slot", "model", "user", "input_mb", "output_mb", "cell")
HELD_OUT = 0.2  # share of the recording, at its end, that training does not see where nothing is said


@dataclass
class TraceConfig:
    """Keys of `configs/env/demand/trace.yaml`."""

    _target_: str = ""
    file: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    start: float | None = None
    held_out: list[list[float]] | None = None

    def __post_init__(self) -> None:
        check_columns(self.columns, COLUMNS)
        check_start(self.start)


class TraceDemand(Demand):
    """A file with the columns `time` (s) or `slot`, `model`, and perhaps `user`, `input_mb`, `output_mb` and `cell`.

    A user asks at most once per slot: what comes beyond waits for its next free slot. Without `user`, requests go to
    the users in turn. Who has no request in a slot asks for nothing. With `cell`, that cell serves the request wherever
    the user stands. Sizes that are not given are drawn from the scenario's ranges.
    """

    Config = TraceConfig
    config: TraceConfig

    def __init__(self, scenario: Scenario, config: TraceConfig) -> None:
        super().__init__(scenario, config)
        s, recording = scenario, Recording(KEY, config.file, config.columns)
        seconds = recording.seconds(s.slot_duration)
        asked = whole_slots(seconds, config.start, s.slot_duration)
        if asked[-1] < 0:
            raise UserError(f"{recording.label} ends before env.demand.start {config.start} s")
        model = _models(recording, s, config.models)
        user = recording.whole("user", s.users, "env.users") if recording.has("user") else None
        cell = recording.whole("cell", s.cells, "env.cells") if recording.has("cell") else None
        sizes = {key: _sizes(recording, key) for key in ("input_mb", "output_mb") if recording.has(key)}
        kept = asked >= 0
        turn = np.arange(kept.sum()) % s.users if user is None else user[kept]
        slot = in_turn(asked[kept], turn)
        late = slot - asked[kept]
        recording.refuse(
            np.pad(late, (len(asked) - len(late), 0)) > LONGEST_WAIT,
            lambda row: f"waits more than {LONGEST_WAIT} slots, as a user asks once per slot; give more users or slots",
        )
        self.covers = int(slot.max()) + 1
        recording.small_enough(self.covers, s.users + s.models)
        device, place = s.sites.device, (slot, turn)
        first = seconds[0] if config.start is None else config.start
        step = s.slot_duration or 1.0
        self.begin, self.step = slot_of(first, step) * step, step

        def table(values: Array, missing: float, kind: torch.dtype) -> Tensor:
            dense = np.full((slot.max() + 1, s.users), missing)
            dense[place] = values[kept]
            return torch.tensor(dense, dtype=kind, device=device)

        self.request_table = table(model, -1, torch.int32)
        self.size_table = {key: table(values * BITS_PER_MB, 1.0, torch.float32) for key, values in sizes.items()}
        several = cell is not None and s.cells > 1
        self.cell_table = table(cell, -1, torch.int32) if cell is not None and several else None
        counts = np.zeros((self.covers + 1, s.cells if several else 1, s.models), dtype=np.int32)
        where: Any = (slot + 1, cell[kept] if cell is not None and several else 0, model[kept])
        np.add.at(counts, where, 1)
        self.so_far = torch.tensor(counts, device=device).cumsum(0, dtype=torch.int32)  # before each slot [S + 1, *, M]
        self.held_out = self._held_out(recording)
        self.digest = recording.digest

    def _held_out(self, recording: Recording) -> Tensor:
        """Which slots training does not see, bool [S]."""
        slots, episode, given = int(self.covers or 0), self.scenario.slots_per_episode, self.config.held_out
        if given is None:
            last = max(round(HELD_OUT * slots), episode)
            given = [[self.begin + self.step * (slots - last), np.inf]]
        times = self.begin + self.step * np.arange(slots)
        held = np.zeros(slots, dtype=bool)
        for entry in given:
            if len(entry) != 2 or not entry[0] < entry[1]:
                raise UserError(f"env.demand.held_out: {list(entry)} is not a stretch [from, to] of time in s")
            held |= (times >= entry[0] - 1e-6) & (times < entry[1] - 1e-6)
        return torch.tensor(held, device=self.scenario.sites.device)

    def starts(self, slots: Tensor, held_out: bool) -> Tensor:
        """Training starts where the whole episode is seen, evaluation where all of it is held out."""
        episode = self.scenario.slots_per_episode
        before = torch.nn.functional.pad(self.held_out.cumsum(0), (1, 0))
        held = before[slots + episode] - before[slots]
        found = slots[held == (episode if held_out else 0)]
        if not len(found):
            what = "is held out for evaluation" if held_out else "is left for training"
            raise UserError(
                f"env.demand.held_out: no episode of {episode} slots {what}; {KEY} lasts {self.covers} slots, "
                f"from {self.begin:g} s to {self.begin + self.step * (self.covers or 0):g} s"
            )
        return found

    def recorded(self, time: Tensor) -> Recorded | None:
        at = time.clamp_max(len(self.request_table) - 1)  # after the last slot of an episode another is drawn
        request = self.request_table[at].long()
        sizes = {key: values[at] for key, values in self.size_table.items()}
        cell = None if self.cell_table is None else self.cell_table[at].long()
        return Recorded(request >= 0, request.clamp_min(0), sizes.get("input_mb"), sizes.get("output_mb"), cell)

    def ahead(self, time: Tensor, frame: Tensor) -> Tensor:
        """Where the file names no cells, each is told the requests of the whole world."""
        last = len(self.so_far) - 1
        end = (frame + self.scenario.slots_per_frame).clamp_max(last)
        counts = self.so_far[end] - self.so_far[time.clamp_max(last)]
        return counts.expand(-1, self.scenario.cells, -1)

    @property
    def frequencies(self) -> Tensor | None:
        """Of the slots that training sees, by cell where the file names cells."""
        counts = self.so_far.diff(dim=0)[~self.held_out].sum(0).double()
        everywhere = counts.sum(0, keepdim=True)
        everywhere = torch.where(everywhere.sum() > 0, everywhere, torch.ones_like(everywhere))
        counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, everywhere)
        shares = (counts / counts.sum(-1, keepdim=True)).float()
        return shares if self.cell_table is None else shares.unsqueeze(1)


def in_turn(slots: Array, user: Array) -> Array:
    """When requests are asked if each user asks at most once per slot, in order: int64 [R].

    Args:
        slots: when each is wanted, in order of time, int64 [R].
        user: whose it is, int64 [R].

    Returns:
        Of each user's requests, the i-th is asked at max(wanted, slot of the one before + 1).
    """
    order = np.argsort(user, kind="stable")
    begins = np.concatenate(([True], np.diff(user[order]) != 0))
    number = np.arange(len(order)) - np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    # Less its number, a user's slot is the running maximum of slots less numbers; groups are kept apart by an offset.
    spread = slots.max() + len(slots) + 1
    lifted = slots[order] - number + user[order] * spread
    asked = np.empty_like(slots)
    asked[order] = np.maximum.accumulate(lifted) - user[order] * spread + number
    return asked


def _models(recording: Recording, scenario: Scenario, names: list[str]) -> Array:
    """The number of each row's model, int64: given as such, or by its name."""
    column = recording.column("model")
    if names and (len(names) != scenario.models or len({*names}) != len(names)):
        raise UserError(f"env.demand.models: {len({*names})} different names for {scenario.models} models")
    if not names and pd.to_numeric(column, errors="coerce").notna().all():
        return recording.whole("model", scenario.models, "the models there are")
    names = names or list(scenario.model_names)
    known = column.astype(str).map({name: place for place, name in enumerate(names)})
    recording.refuse(known.isna().to_numpy(), lambda row: f"model {column.iloc[row]!r} is none of {_few(names)}")
    return known.to_numpy().astype(np.int64)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _sizes(recording: Recording, name: str) -> Array:
    values = recording.numbers(name, high=LARGEST_MB)
    recording.refuse(values <= 0, lambda row: f"{name} {values[row]:g} is not above 0 MB")
    return values
