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
| `oracle_cache` | models that the oracle would hold; null unless it is a reference of the evaluation |
| `reward` | of the frame |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
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

from lightning_t2drl.cachers.base import Cacher
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
        oracle: says what the oracle would hold; None: nobody does. One that cannot be found is none.

    Raises:
        UserError: pyarrow is not installed.
    """

    def __init__(self, directory: Path, scenario: Scenario, worlds: int, oracle: Cacher | None = None) -> None:
        _pyarrow()
        self.directory, self.scenario, self.worlds, self.oracle = directory, scenario, worlds, oracle
        self._writers: dict[str, Any] = {}
        self._slots: list[tuple[Slot, Tensor]] = []  # the present frame's, with where users stood
        self._held: Tensor | None = None  # caches of the frame before
        self._frame = 0
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
        position, self._position = self._position, env.worlds.state["position"]
        if slot is None:
            return
        self._slots.append((slot, position))
        if len(self._slots) == self.scenario.slots_per_frame:
            self._write(FILES[0], self._users())
            self._write(FILES[1], self._cells(self._slots[0][0].cells, slot.following["reward", "frame"]))
            self._slots, self._frame = [], self._frame + 1

    def _users(self) -> dict[str, Any]:
        """Columns of a frame's slots."""
        s, slots = self.scenario, [slot for slot, _ in self._slots]
        optional = ("uplink_interference", "downlink_interference") if s.cells > 1 else ()
        cells = _stacked([slot.cells for slot in slots], ("attached", "request", *ASKED, *optional))
        served = _stacked([slot.following["served"] for slot in slots], (*SERVED, "shares", "nearby", "handover"))
        attached = cells["attached"]  # [K, N, B, U]
        rows = torch.arange(attached.numel()) if bool(attached.all()) else attached.flatten().nonzero().squeeze(-1)

        def of_users(value: Tensor) -> Any:
            value = value.expand(attached.shape).flatten()
            return (value if len(rows) == len(value) else value[rows]).numpy()

        if optional:  # one number for all users of a cell
            cells["uplink_interference"] = cells["uplink_interference"].unsqueeze(-1)
        asked = (_stack(slot.raw for slot in slots).clamp(-1, 1) + 1) / 2
        x, y = _stack(position for _, position in self._slots).unsqueeze(2).unbind(-1)
        slot, world, cell, user = np.unravel_index(rows.numpy(), attached.shape)
        nobody = torch.zeros(1, dtype=torch.bool)
        return {
            "world": world.astype(np.int32),
            "frame": np.full(len(rows), self._frame, np.int32),
            "slot": (slot + self._frame * s.slots_per_frame).astype(np.int32),
            "cell": cell.astype(np.int32),
            "user": user.astype(np.int32),
            "model": of_users(cells["request"].int()),
            **{name: of_users(cells[name]) for name in ASKED},
            "x": of_users(x),
            "y": of_users(y),
            **{name: of_users(served.get(name, nobody)) for name in ("nearby", "handover")},
            **{name: of_users(cells[name]) for name in optional},
            "bandwidth_asked": of_users(asked[..., 0]),
            "steps_asked": of_users(steps_of(s, cells["request"], asked[..., 1])),
            "bandwidth": of_users(served["shares"][..., 0]),
            "steps": of_users(steps_of(s, cells["request"], served["shares"][..., 1])),
            **{name: of_users(served[name]) for name in SERVED},
        }

    def _cells(self, first: TensorDict, reward: Tensor) -> dict[str, Any]:
        """Columns of a frame from the observation of its first slot and its reward."""
        cells, cache = first.cpu(), first["cache"].cpu()
        held = torch.zeros_like(cache) if self._held is None else self._held
        self._held = cache
        rows = cells.batch_size.numel()
        number = np.arange(rows, dtype=np.int32)
        loaded = ((cache & ~held) * self.scenario.model_storage.cpu()).sum(-1) / BITS_PER_GB
        return {
            "world": number // self.scenario.cells,
            "frame": np.full(rows, self._frame, np.int32),
            "cell": number % self.scenario.cells,
            "popularity_state": cells["popularity_state"].flatten().int().numpy(),
            "popularity": cells["popularity"].flatten(0, 1).tolist(),
            "cache": _models(cache),
            "oracle_cache": self._oracle_cache(first),
            "loaded_gb": loaded.flatten().float().numpy(),
            "reward": reward.cpu().flatten().numpy(),
        }

    def _oracle_cache(self, first: TensorDict) -> Any:
        """What the oracle would hold, by cell."""
        if self.oracle is not None:
            try:
                return _models(self.oracle.decide(first).cpu())
            except UserError:  # there are too many caches to try; whoever plays the oracle says so
                self.oracle = None
        return _models(None, first.batch_size.numel())

    def _write(self, name: str, columns: dict[str, Any]) -> None:
        pyarrow, parquet = _pyarrow()
        table = pyarrow.table(columns)
        if name not in self._writers:
            facts = json.dumps({"worlds": self.worlds, "scenario": self.scenario.as_dict()})
            schema = table.schema.with_metadata({KEY: facts.encode()})
            self._writers[name] = parquet.ParquetWriter(
                self._temporary(name), schema, use_dictionary=WHICH, write_statistics=WHICH
            )
        self._writers[name].write_table(table.cast(self._writers[name].schema))

    def _temporary(self, name: str) -> Path:
        return self.directory / f".{name}.tmp"


def _stack(values: Iterable[Tensor]) -> Tensor:
    """What the slots of a frame have, [K, ...] on the CPU."""
    return torch.stack(list(values)).cpu()


def _stacked(slots: Sequence[TensorDict], names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the fields that there are."""
    fields = [dict(slot.items()) for slot in slots]
    return {name: _stack(slot[name] for slot in fields) for name in names if name in fields[0]}


def _models(cache: Tensor | None, rows: int = 0) -> Any:
    """A column of lists of models from caches [N, B, M]; None: of `rows` nulls."""
    pyarrow, _ = _pyarrow()
    held = [None] * rows if cache is None else [row.nonzero().flatten().tolist() for row in cache.flatten(0, 1)]
    return pyarrow.array(held, pyarrow.list_(pyarrow.int64()))


def read_records(directory: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `slots.parquet` and `frames.parquet`.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    _pyarrow()
    tables = []
    for path in (Path(directory) / name for name in FILES):
        if not path.is_file():
            raise UserError(f"{directory}: no records; evaluate with records=true")
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged, or no Parquet ({next(iter(str(error).splitlines()), '')})") from None
    return tables[0], tables[1]


def read_facts(directory: str | Path) -> dict[str, Any]:
    """What the records say of their worlds: `worlds`, how many, and `scenario`, what `Scenario.as_dict` returned.

    Raises:
        UserError: they say nothing.
    """
    _, parquet = _pyarrow()
    path = Path(directory) / FILES[0]
    try:
        facts = json.loads(parquet.read_schema(path).metadata[KEY])
        return {"worlds": int(facts["worlds"]), "scenario": dict(facts["scenario"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not written by evaluate with records=true, or by another version") from None


def episode_means(directory: str | Path) -> dict[str, Tensor]:
    """What `evaluate` returned while these records were written, exactly: means by metric, [worlds] each."""
    slots, frames = read_records(directory)
    facts = read_facts(directory)
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
