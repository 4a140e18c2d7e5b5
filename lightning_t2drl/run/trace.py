"""Writes the requests of a world as a trace: what `t2drl trace` does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from rich.progress import track

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import sync_directory, temporary_name
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.screen import console
from lightning_t2drl.seeding import make_generator
from lightning_t2drl.system import build_scenario
from lightning_t2drl.system.recordings import PARQUET
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.world import State, advance, draw_noise, initial_state

BITS_PER_MB = 8e6
ENDINGS = (".csv", *PARQUET)


def run_trace(composed: Composed) -> Path:
    """Write a trace and return its path.

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    config, screen = composed.config, console()
    path, scenario = Path(config.output), build_scenario(config.env)
    if path.suffix not in ENDINGS:
        raise UserError(f"output: {path} ends in none of {', '.join(ENDINGS)}")
    if path.exists():
        raise UserError(f"output: {path} is there already; choose another")
    if not path.parent.is_dir():
        raise UserError(f"output: {path.parent} is no directory")
    if scenario.recorded_demand:
        raise UserError("env/demand: this demand is recorded already; a trace is of env/demand=markov")
    slots = range(config.slots)
    shown = track(slots, "writing", console=screen, transient=True, disable=not config.progress_bar)
    table = trace(scenario, shown, config.seed)
    temporary = temporary_name(path)
    try:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"output: {path} cannot be written ({error.strerror})") from None
    except ImportError:
        raise UserError('output: pyarrow is not installed; pip install "lightning-t2drl[records]"') from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    screen.print(f"written to {path}: {len(table)} requests of {scenario.users} users in {config.slots} slots")
    return path


def trace(scenario: Scenario, slots: Iterable[int], seed: int) -> pd.DataFrame:
    """The requests of one world, one row each, in order of time.

    `slots` counts from 0. Columns `slot`, `time` (s), `user`, `model`, `input_mb`, `output_mb`, where the user is, `x`
    and `y` (m), and with several cells `cell`.
    """
    generator = make_generator("cpu", seed, "trace")
    world = initial_state(scenario, 1, generator)
    parts = []
    for slot in slots:
        if slot:
            world = advance(scenario, world, draw_noise(scenario, 1, generator))
        parts.append(_requests(scenario, world, slot))
    return pd.concat(parts, ignore_index=True)


def _requests(scenario: Scenario, world: State, slot: int) -> pd.DataFrame:
    user, cell = world["attached"][0].T.nonzero(as_tuple=True)  # in order of users

    def column(name: str) -> torch.Tensor:
        return world[name][0, 0, user]

    place = world["position"][0, user]
    columns = {
        "slot": torch.full_like(user, slot),
        "time": torch.full_like(user, slot).double() * scenario.slot_duration,
        "user": user,
        "model": column("request"),
        "input_mb": (column("input_bits") / BITS_PER_MB),
        "output_mb": (column("output_bits") / BITS_PER_MB),
        "x": place[:, 0],
        "y": place[:, 1],
    }
    if scenario.cells > 1:
        columns["cell"] = cell
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})
