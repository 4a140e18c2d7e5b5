"""Every decision of an evaluation and what came of it, as two Parquet files: `slots.parquet` and `frames.parquet`.

`slots.parquet` has one row per world, slot and user present:

| column | meaning |
| --- | --- |
| `world`, `frame`, `slot`, `cell`, `user` | which, counted from 0; `slot` of the episode; `cell`: who serves the user |
| `model`, `input_bits`, `output_bits`, `gain` | what is asked for, and the link's power gain |
| `x`, `y` | where the user stands, m |
| `hit`, `nearby`, `handover` | model in the cell; in another cell that serves it; user just taken over |
| `uplink_interference`, `downlink_interference` | of several cells only: at the station and at the user, W |
| `bandwidth_asked`, `steps_asked` | share of the bandwidth, and denoising steps, before the amender |
| `bandwidth`, `steps` | the same as executed; a miss gets no steps |
| `access_delay`, `generation_delay`, `backhaul_delay`, `delay` | s |
| `metric`, `quality`, `latency`, `violated`, `utility` | what `serve` returned |

`frames.parquet` has one row per world, frame and cell:

| column | meaning |
| --- | --- |
| `world`, `frame`, `cell` | which, counted from 0 |
| `popularity_state`, `popularity` | the truth, and what the cacher saw |
| `cache`, `loaded_gb` | models held, counted from 0; what of them was not held in the frame before, GB |
| `reward` | of the frame |
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import EpisodeMeans
from lightning_t2drl.loop.slots import Slot
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import BITS_PER_GB
from lightning_t2drl.system.service import steps_of

FILES = ("slots.parquet", "frames.parquet")
ASKED = ("input_bits", "output_bits", "gain")
DELAYS = ("access_delay", "generation_delay", "backhaul_delay", "delay")
SERVED = ("hit", *DELAYS, "metric", "quality", "latency", "violated", "utility")
WHICH = ["world", "frame", "slot", "cell", "user", "model"]  # columns with few values, stored as such
KEY = b"lightning_t2drl"  # of the files' metadata


class Recorder:
    """Writes records while `evaluate` plays: hand it over as `watch`, inside a `with` block.

    The files appear when the block ends, whole or not at all.

    Args:
        directory: where they go; made if there is none.
        scenario: of the worlds.
        worlds: how many.

    Raises:
        UserError: pyarrow is not installed.
    """

    def __init__(self, directory: Path, scenario: Scenario, worlds: int) -> None:
        _pyarrow()
        self.directory, self.scenario, self.worlds = directory, scenario, worlds
        self._writers: dict[str, Any] = {}
        self._slots: list[dict[str, Any]] = []  # columns of the present frame's slots
        self._held: Tensor | None = None  # caches of the frame before
        self._number = 0  # of slots so far
        self._position = torch.empty(0)

    def __enter__(self) -> Recorder:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, writer in self._writers.items():
            writer.close()
            temporary = self._temporary(name)
            temporary.unlink() if kind is not None else os.replace(temporary, self.directory / name)
        with suppress(OSError):  # something was written
            self.directory.rmdir()

    def __call__(self, env: EdgeAIGCEnv, slot: Slot | None) -> None:
        """Note a slot that was served; None before the first."""
        position, self._position = self._position, env.get_state()["world"]["position"].cpu()
        if slot is None:
            return
        k = self.scenario.slots_per_frame
        frame, within = divmod(self._number, k)
        if within == 0:
            self._first = slot.cells
        self._slots.append(self._users(slot, position, frame))
        self._number += 1
        if within == k - 1:
            columns = {name: np.concatenate([s[name] for s in self._slots]) for name in self._slots[0]}
            self._write(FILES[0], columns)
            self._write(FILES[1], self._cells(self._first, slot.following["reward", "frame"], frame))
            self._slots = []

    def _users(self, slot: Slot, position: Tensor, frame: int) -> dict[str, Any]:
        """Columns of one slot."""
        cells, served = slot.cells.cpu(), slot.following["served"].cpu()
        attached = cells["attached"]
        world, cell, user = attached.nonzero(as_tuple=True)

        def of_users(value: Tensor) -> Any:
            return value[attached].numpy()

        nobody = torch.zeros_like(attached)
        several = {}
        if self.scenario.cells > 1:
            several["uplink_interference"] = of_users(cells["uplink_interference"].unsqueeze(-1).expand(attached.shape))
            several["downlink_interference"] = of_users(cells["downlink_interference"])
        asked = (slot.raw.cpu().clamp(-1, 1) + 1) / 2
        place = position[world, user]
        return {
            "world": world.int().numpy(),
            "frame": np.full(len(world), frame, np.int32),
            "slot": np.full(len(world), self._number, np.int32),
            "cell": cell.int().numpy(),
            "user": user.int().numpy(),
            "model": of_users(cells["request"].int()),
            **{name: of_users(cells[name]) for name in ASKED},
            "x": place[:, 0].numpy(),
            "y": place[:, 1].numpy(),
            **{name: of_users(served.get(name, nobody)) for name in ("nearby", "handover")},
            **several,
            "bandwidth_asked": of_users(asked[..., 0]),
            "steps_asked": of_users(steps_of(self.scenario, cells["request"], asked[..., 1])),
            "bandwidth": of_users(served["shares"][..., 0]),
            "steps": of_users(steps_of(self.scenario, cells["request"], served["shares"][..., 1])),
            **{name: of_users(served[name]) for name in SERVED},
        }

    def _cells(self, first: TensorDict, reward: Tensor, frame: int) -> dict[str, Any]:
        """Columns of a frame from the observation of its first slot and its reward."""
        cells, cache = first.cpu(), first["cache"].cpu()
        held = torch.zeros_like(cache) if self._held is None else self._held
        self._held = cache
        rows = cells.batch_size.numel()
        number = np.arange(rows, dtype=np.int32)
        loaded = ((cache & ~held) * self.scenario.model_storage.cpu()).sum(-1) / BITS_PER_GB
        return {
            "world": number // self.scenario.cells,
            "frame": np.full(rows, frame, np.int32),
            "cell": number % self.scenario.cells,
            "popularity_state": cells["popularity_state"].flatten().int().numpy(),
            "popularity": cells["popularity"].flatten(0, 1).tolist(),
            "cache": [row.nonzero().flatten().tolist() for row in cache.flatten(0, 1)],
            "loaded_gb": loaded.flatten().float().numpy(),
            "reward": reward.cpu().flatten().numpy(),
        }

    def _write(self, name: str, columns: dict[str, Any]) -> None:
        pyarrow, parquet = _pyarrow()
        table = pyarrow.table(columns)
        if name not in self._writers:
            facts = json.dumps({"worlds": self.worlds, "scenario": self.scenario.as_dict()})
            schema = table.schema.with_metadata({KEY: facts.encode()})
            self._writers[name] = parquet.ParquetWriter(self._temporary(name), schema, use_dictionary=WHICH)
        self._writers[name].write_table(table.cast(self._writers[name].schema))

    def _temporary(self, name: str) -> Path:
        return self.directory / f".{name}.tmp"


def read_records(directory: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `slots.parquet` and `frames.parquet`.

    Raises:
        UserError: there are none.
    """
    _pyarrow()
    try:
        slots, frames = (pd.read_parquet(Path(directory) / name) for name in FILES)
    except OSError:
        raise UserError(f"{directory}: no records; evaluate with records=true") from None
    return slots, frames


def episode_means(directory: str | Path) -> dict[str, Tensor]:
    """What `evaluate` returned while these records were written, exactly: means by metric, [worlds] each."""
    slots, frames = read_records(directory)
    _, parquet = _pyarrow()
    facts = json.loads(parquet.read_schema(Path(directory) / FILES[0]).metadata[KEY])
    s = _scenario(facts["scenario"])
    shape = (facts["worlds"], s.cells, s.users)
    optional = ("handover",) * (s.cells > 1) + ("nearby",) * (s.cells > 1 and s.edge_link_rate is not None)
    means = EpisodeMeans(s)
    rewards = torch.tensor(frames["reward"].to_numpy()).view(-1, *shape[:2], 1)
    bounds = np.searchsorted(slots["slot"], np.arange(len(rewards) * s.slots_per_frame + 1))
    for number, (start, end) in enumerate(pairwise(bounds)):
        rows = slots.iloc[start:end]
        place = tuple(torch.tensor(rows[name].to_numpy()).long() for name in ("world", "cell", "user"))

        def dense(values: Tensor, place: tuple[Tensor, ...] = place) -> Tensor:
            return torch.zeros(shape, dtype=values.dtype).index_put_(place, values)

        served = {name: dense(torch.tensor(rows[name].to_numpy())) for name in (*SERVED, *optional)}
        served["shares"] = torch.stack(
            [dense(torch.tensor(rows[name].to_numpy())) for name in ("bandwidth", "steps")], -1
        )
        cells = {"attached": dense(torch.ones(len(rows), dtype=torch.bool))}
        cells["request"] = dense(torch.tensor(rows["model"].to_numpy()).long())
        frame, within = divmod(number, s.slots_per_frame)
        reward = rewards[frame] if within == s.slots_per_frame - 1 else torch.zeros_like(rewards[0])
        means.add(TensorDict(served, batch_size=shape[:2]), cells, reward)
    return means.take()


def _scenario(facts: dict[str, Any]) -> Any:
    """What the means need of the scenario."""
    per_model = {key: torch.tensor(value) for key in ("deadline", "alpha") if isinstance(value := facts[key], list)}
    return SimpleNamespace(**facts | per_model)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('records: pyarrow is not installed; pip install "lightning-t2drl[records]"') from None
    return pyarrow, pyarrow.parquet
