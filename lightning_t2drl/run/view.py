"""Every slot of some episodes as one HTML page that needs no network: what `t2drl view` does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress
from torch import Tensor

from lightning_t2drl.cachers.oracle import OracleCacher, OracleConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.loop.records import FILES, Recorder, read_facts, read_records
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.overrides import parse, read
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.tables import plain_table
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import of_model
from lightning_t2drl.system.serving import cell_mean, serve

PAGE, TEMPLATE = "view.html", "view_template.html"
ROWS = 2048  # slots of cells that are solved at once
LOSSES = ("cache", "bandwidth", "steps", "unproven")
OF_RECORDS = ("records", "episodes", "oracle_slots", "output_dir", "progress_bar")  # keys that count beside records
ABSENT = 255
NEEDED = ("model", "input_bits", "output_bits", "gain", "hit", "nearby", "violated", "x", "y", "bandwidth", "steps",
          "delay", "utility")  # fmt: skip
COPIED = ("request", "input_bits", "output_bits", "gain", "handover", "uplink_interference", "downlink_interference")


@dataclass(frozen=True)
class View:
    """What `t2drl view` made.

    Args:
        page: the HTML file.
        losses: mean loss per slot and cell by cause, in utility; their sum is what the bound exceeds the policy by;
            `cache` is left out where the oracle's cache is not known.
    """

    page: Path
    losses: dict[str, float]


def run_view(composed: Composed) -> View:
    """Write the page of a pair of policies, played here, or of records.

    Raises:
        UserError: there are no records, plotly is not installed, or the directory cannot be written.
    """
    config, screen = composed.config, console()
    library = _plotly()
    if len(config.records) > 1:
        raise UserError(f"records: {len(config.records)} directories; a page shows one")
    for word in parse(read(composed.arguments).overrides) if config.records else ():
        if (key := str(word.key_or_group)) not in OF_RECORDS:
            raise UserError(f"{key}: counts for nothing beside records, which hold what was played")
    with new_directory("view", config.output_dir) as directory:
        title, records = "records", _within(Path(config.records[0])) if config.records else directory / "records"
        if not config.records:
            title, scenario, cacher, allocator = load_policies(composed)
            oracle = OracleCacher(scenario, OracleConfig(slots=config.oracle_slots)) if config.oracle_slots else None
            with Recorder(records, scenario, config.episodes, oracle) as recorder:
                evaluate(scenario, cacher, allocator, config.episodes, config.seed, watch=recorder)
        with Progress(console=screen, transient=True, disable=not config.progress_bar) as progress:
            task = progress.add_task("solving", total=1)
            content = page_content(records, config.episodes, config.oracle_slots, title,
                                   lambda done, total: progress.update(task, completed=done, total=total))  # fmt: skip
        template = (files(__package__) / TEMPLATE).read_text()
        text = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
        write_atomically(directory / PAGE, template.replace("@@PLOTLY@@", library).replace("@@DATA@@", text))
    table = plain_table("lost against the bound, per slot", "utility")
    for name, value in content["means"].items():
        table.add_row(name, f"{value:.4f}")
    screen.print(table, soft_wrap=False)
    screen.print(
        f"written to {directory / PAGE} ({(directory / PAGE).stat().st_size / 1e6:.1f} MB); open it in a browser"
    )
    return View(directory / PAGE, content["means"])


def _plotly() -> str:
    """Plotly's library, as JavaScript."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError('view: plotly is not installed; pip install "lightning-t2drl[view,records]"') from None
    return get_plotlyjs()


# -- what was played


def read_scenario(facts: dict[str, Any]) -> Scenario:
    """The scenario from what `Scenario.as_dict` made of it."""
    values = {}
    for field in fields(Scenario):
        value, kind = facts[field.name], str(field.type)
        if isinstance(value, list):
            flat = not value or not isinstance(value[0], list)
            if "tuple" in kind and ("Tensor" not in kind or (flat and len(value) == 2)):
                value = tuple(value)
            else:
                value = torch.tensor(value, dtype=torch.float64 if field.name == "model_storage" else None)
        values[field.name] = value
    return Scenario(**values)


@dataclass(frozen=True)
class Played:
    """Episodes as dense arrays: slots [S], worlds [N], cells [B], users [U], frames [F]."""

    scenario: Scenario
    slots: dict[str, Tensor]  # [S, N, B, U] by column
    attached: Tensor  # bool [S, N, B, U]
    cache: Tensor  # bool [F, N, B, M]
    state: Tensor  # popularity state, int64 [F, N, B]
    oracle: Tensor | None  # the oracle's caches, as `cache`, where they were recorded


def _within(directory: Path) -> Path:
    """Records where they are, or the only ones of an evaluation's directory."""
    inner = sorted(path for path in directory.glob("records/*") if path.is_dir())
    if (directory / FILES[0]).exists() or not inner:
        return directory
    if len(inner) > 1:
        raise UserError(f"{directory}: holds records of several schemes; name one of {', '.join(map(str, inner))}")
    return inner[0]


def read_played(directory: Path, episodes: int) -> Played:
    """The first episodes of records.

    Raises:
        UserError: there are no records, or they lack what a page needs.
    """
    slots, frames = read_records(directory)
    facts = read_facts(directory)
    try:
        s = read_scenario(facts["scenario"])
    except (KeyError, TypeError):
        raise UserError(f"{directory}: records of another version; evaluate anew with records=true") from None
    try:
        return _dense(directory, slots, frames, s, min(episodes, facts["worlds"]))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        why = " ".join(str(error).split())
        raise UserError(f"{directory}: the records lack something, or hold what cannot be ({why})") from None


def _dense(directory: Path, slots: pd.DataFrame, frames: pd.DataFrame, s: Scenario, n: int) -> Played:
    """Rows of the first `n` worlds as arrays."""
    if missing := [name for name in NEEDED if name not in slots]:
        raise ValueError(f"{FILES[0]} has no column {missing[0]}")
    if s.cells > 1 and "uplink_interference" not in slots:
        raise UserError(f"{directory}: records without interference; evaluate anew with records=true")
    slots, frames = slots[slots["world"] < n], frames[frames["world"] < n]
    if len(frames) != s.frames_per_episode * n * s.cells:
        raise ValueError(f"{FILES[1]} has {len(frames)} rows of {s.frames_per_episode * n * s.cells}")
    shape = (s.slots_per_episode, n, s.cells, s.users)
    place = tuple(torch.tensor(slots[name].to_numpy()).long() for name in ("slot", "world", "cell", "user"))

    def dense(values: pd.Series) -> Tensor:
        tensor = torch.tensor(values.to_numpy())
        return torch.zeros(shape, dtype=tensor.dtype).index_put_(place, tensor)

    columns = {name: dense(slots[name]) for name in slots if name not in ("slot", "world", "cell", "user", "frame")}
    columns["request"] = columns.pop("model").long()
    attached = torch.zeros(shape, dtype=torch.bool).index_put_(place, torch.tensor(True))
    frames = frames.sort_values(["frame", "world", "cell"])
    state = torch.tensor(frames["popularity_state"].to_numpy()).long()
    place_of_frame = s.frames_per_episode, n, s.cells

    def caches(name: str) -> Tensor:
        held = torch.zeros(len(frames), s.models, dtype=torch.bool)
        for row, models in enumerate(frames[name]):
            held[row, torch.tensor(models, dtype=torch.long)] = True
        return held.view(*place_of_frame, s.models)

    oracle = None if frames["oracle_cache"].isna().any() else caches("oracle_cache")
    return Played(s, columns, attached, caches("cache"), state.view(place_of_frame), oracle)


def oracle_of(played: Played, slots: int) -> Tensor | None:
    """The oracle's caches, bool [F, N, B, M]: as recorded, else found on `slots` slots; None: left out or unknown."""
    if not slots:
        return None
    if played.oracle is not None or played.scenario.recorded_demand:
        return played.oracle
    try:
        return OracleCacher(played.scenario, OracleConfig(slots=slots)).caches.of(played.state)
    except UserError:  # more caches than can be compared
        return None


# -- what was lost, and why


def solve(played: Played, oracle: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """The exact allocation and what was lost against the bound, some slots at a time, see `_losses`.

    Args:
        oracle: the oracle's caches, bool [F, N, B, M].
    """
    some = max(ROWS // played.attached[0, ..., 0].numel(), 1)
    for slots in torch.arange(len(played.attached)).split(some):
        frame = slots // played.scenario.slots_per_frame
        with torch.no_grad():
            yield _losses(played, slots, played.cache[frame], None if oracle is None else oracle[frame])


def _losses(played: Played, slot: Tensor, cache: Tensor, oracle: Tensor | None) -> dict[str, Tensor]:
    """Of slots `exact_bandwidth`, `exact_steps` [*, N, B, U], `utility`, `bound` and `LOSSES` [*, N, B].

    `bound` is that with the better of the two caches, in this slot. It exceeds the utility by four causes: `cache`,
    what the bound is lower with the cache held; `bandwidth` and `steps`, what the exact allocation gains by either,
    averaged over which of the two is exchanged first; and `unproven`, what is left between that allocation and its
    bound. A cache that happens to be better in this slot than the oracle's makes the first one 0.
    """
    s, attached = played.scenario, played.attached[slot]
    now = {name: played.slots[name][slot] for name in COPIED if name in played.slots}
    for name in ("input_bits", "output_bits", "gain"):  # of whom is elsewhere nothing was recorded, and 0 is no link
        now[name] = torch.where(attached, now[name], 1.0)
    if s.cells == 1:
        now.pop("handover", None)
    else:
        now["uplink_interference"] = now["uplink_interference"].amax(-1)  # the same for all users of a cell

    def given(held: Tensor) -> dict[str, Any]:
        return now | {"cache": held, "attached": attached} | ({"nearby": held_elsewhere(held)} if s.cooperates else {})

    own = slot_bound(s, **given(cache), rounds=1)

    def utility(bandwidth: Tensor, steps: Tensor) -> Tensor:
        served = serve(s, **given(cache), bandwidth=bandwidth.clamp_min(0), steps=steps)
        return cell_mean(served["utility"], attached)

    b, x = played.slots["bandwidth"][slot], played.slots["steps"][slot]
    best_b, best_x = own["bandwidth"], own["steps"]
    ours, both = cell_mean(played.slots["utility"][slot], attached), own["achieved"]
    other_b, other_x = utility(best_b, x), utility(b, best_x)
    bound = own["bound"]
    if oracle is not None:
        bound = torch.maximum(bound, slot_bound(s, **given(oracle), rounds=0, counts=2)["bound"])
    losses = {
        "cache": bound - own["bound"],
        "bandwidth": ((other_b - ours) + (both - other_x)) / 2,
        "steps": ((other_x - ours) + (both - other_b)) / 2,
        "unproven": own["bound"] - both,
    }
    return losses_of_present(losses, attached) | {"exact_bandwidth": best_b, "exact_steps": best_x,
                                                  "utility": ours, "bound": bound}  # fmt: skip


def losses_of_present(losses: dict[str, Tensor], attached: Tensor) -> dict[str, Tensor]:
    """Nothing is lost in a cell that has nobody."""
    return {name: torch.where(attached.any(-1), value, 0.0) for name, value in losses.items()}


# -- the page


def page_content(
    directory: Path, episodes: int, oracle_slots: int, title: str, progress: Any = lambda done, total: None
) -> dict[str, Any]:
    """What the page holds, as JSON: arrays of small integers as base64, [N, S, U], and lists by world.

    Raises:
        UserError: there are no records.
    """
    played = read_played(directory, episodes)
    s = played.scenario
    oracle = oracle_of(played, oracle_slots)
    solved = []
    for found in solve(played, oracle):
        solved.append(found)
        progress(sum(len(part["bound"]) for part in solved), len(played.attached))
    together = {name: torch.cat([found[name] for found in solved]) for name in solved[0]}
    attached, slots = played.attached, played.slots
    cell = torch.where(attached.any(2), attached.float().argmax(2), ABSENT)
    low = s.centre - s.area_radius
    flat = {name: value.sum(2) if value.dtype != torch.bool else value.any(2) for name, value in slots.items()}
    source = torch.where(flat["hit"], 0, torch.where(flat["nearby"], 1, 2))
    scale = 65_000 / (2 * s.area_radius)

    def packed(values: Tensor, kind: str) -> str:
        top = np.iinfo(kind).max
        array = values.double().nan_to_num(top, posinf=top).round().clamp(0, top).transpose(0, 1).numpy().astype(kind)
        return base64.b64encode(array.tobytes()).decode()

    arrays = {
        "cell": packed(cell, "uint8"),
        "source": packed(source, "uint8"),
        "late": packed(flat["violated"], "uint8"),
        "model": packed(flat["request"], "uint16"),
        "x": packed((flat["x"] - low[0]) * scale, "uint16"),
        "y": packed((flat["y"] - low[1]) * scale, "uint16"),
        "bandwidth": packed(flat["bandwidth"] * 6e4, "uint16"),
        "exact_bandwidth": packed(together["exact_bandwidth"].sum(2) * 6e4, "uint16"),
        "steps": packed(flat["steps"] * 10, "uint16"),
        "exact_steps": packed(together["exact_steps"].sum(2) * 10, "uint16"),
        "delay": packed(flat["delay"] * 100, "uint16"),
    }
    per_cell = {name: _rounded(together[name]) for name in ("utility", "bound", *LOSSES)}
    deadline = of_model(s.deadline, torch.arange(s.models))
    return {
        "title": title,
        "scenario": s.name,
        "sizes": {"worlds": attached.shape[1], "slots": len(attached), "users": s.users, "cells": s.cells,
                  "models": s.models, "slots_per_frame": s.slots_per_frame},
        "arrays": arrays,
        "scale": {"x": [low[0].item(), 1 / scale], "y": [low[1].item(), 1 / scale], "bandwidth": [0, 100 / 6e4],
                  "exact_bandwidth": [0, 100 / 6e4], "steps": [0, 0.1], "exact_steps": [0, 0.1], "delay": [0, 0.01]},
        "per_cell": per_cell,
        "cache": _models(played.cache),
        "oracle": None if oracle is None else _models(oracle),
        "sites": s.sites.tolist(),
        "centre": s.centre.tolist(),
        "radius": s.area_radius,
        "step_budget": s.step_budget,
        "deadline": deadline.tolist() if isinstance(deadline, Tensor) else [deadline] * s.models,
        "model_names": list(s.model_names),
        "means": {name: round(together[name].mean().item(), 5) for name in LOSSES
                  if name != "cache" or oracle is not None},
    }  # fmt: skip


def _rounded(values: Tensor) -> list[Any]:
    """[S, N, B] as lists by world, slot and cell."""
    return (values.transpose(0, 1).double() * 1e4).round().long().tolist()


def _models(caches: Tensor) -> list[Any]:
    """Caches [F, N, B, M] as lists of models, by world, frame and cell."""
    return [
        [[row.nonzero().flatten().tolist() for row in cells] for cells in world] for world in caches.transpose(0, 1)
    ]
