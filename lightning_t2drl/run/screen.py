"""What the terminal shows: plain text, tables of at most 80 columns, and a run's first screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from lightning_t2drl.loop.stored import flatten
from lightning_t2drl.run.compose import TARGET, compose
from lightning_t2drl.run.overrides import parse, read
from lightning_t2drl.run.schemas import TrainConfig

if TYPE_CHECKING:  # sweeps print, too, and leave PyTorch to their jobs
    from lightning_t2drl.loop.two_timescale import TwoTimescaleModule

SHOWN_CHANGES = 12


def console(quiet: bool = False) -> Console:
    """A console that prints text as it is: without markup, without breaking lines."""
    return Console(quiet=quiet, markup=False, highlight=False, emoji=False, soft_wrap=True)


def opening(config: TrainConfig, plain: dict[str, Any], arguments: Sequence[str], module: TwoTimescaleModule) -> str:
    """The first screen of a run: scheme, scenario, sizes, and what differs from the experiment's own values."""
    scenario, trainer = module.scenario, config.trainer
    devices = f" on each of {trainer.devices} devices" if trainer.devices != 1 else ""
    sizes = {
        name: f"{type(policy).__name__}, {sum(p.numel() for p in policy.parameters()):,} parameters"
        for name, policy in module.policies()
    }
    lines = {
        "scheme": config.name,
        "scenario": f"{scenario.name}: {scenario.users} users, {scenario.models} models, "
        + ("recorded requests" if scenario.recorded_demand else f"{scenario.popularity_states} popularity states"),
        **sizes,
        "length": f"{config.frames:,} frames of {scenario.slots_per_frame} slots in "
        f"{config.env.num_envs} worlds{devices}, seed {config.seed}",
        "runs on": f"{trainer.accelerator}, {trainer.precision}{', compiled update' if config.compile else ''}",
    }
    changes = changed(plain, arguments)
    if changes:
        shown = changes[:SHOWN_CHANGES]
        more = len(changes) - len(shown)
        lines["changed"] = ("\n" + " " * 10).join([*shown, *([f"and {more} more, in config.yaml"] if more else [])])
    return "\n".join(f"{label:<10}{text}" for label, text in lines.items())


def changed(plain: dict[str, Any], arguments: Sequence[str]) -> list[str]:
    """What differs from the chosen experiment alone, as `KEY=NOW (not THERE)`; of an exchanged class its keys."""
    given = read(arguments)
    chosen = [str(o.input_line) for o in parse(given.overrides) if o.key_or_group in ("experiment", "hydra.searchpath")]
    base = flatten(_named(compose("train", [*(f"--config-dir={d}" for d in given.config_dirs), *chosen]).plain))
    now = flatten(_named(plain))
    exchanged = tuple(
        key.removesuffix(TARGET) for key in now if key.endswith(TARGET) and now[key] != base.get(key, now[key])
    )
    told = ("output_dir", "name", "resume")  # said elsewhere
    lines = []
    for key in [key for key in {**now, **base} if key not in told]:
        others = key.startswith(exchanged)  # the former class's keys are no matter of this one's
        if key not in now and not others:
            lines.append(f"~{key} (not {_shown(base[key])})")
        elif key in now and (key not in base or now[key] != base[key]):
            known = key in base and (key.endswith(TARGET) or not others)
            lines.append(f"{key}={_shown(now[key])}" + (f" (not {_shown(base[key])})" if known else ""))
    return lines


def _shown(value: Any) -> str:
    """A value as it is typed."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()


def _named(plain: dict[str, Any]) -> dict[str, Any]:
    """A config with the name of a catalogue in the place of what it holds."""
    catalogue = plain["env"].get("catalogue")
    if not isinstance(catalogue, dict):
        return plain
    return {**plain, "env": {**plain["env"], "catalogue": catalogue.get("name", "its own")}}


def at(directory: Path) -> str:
    """Where a run writes, as a line of its first screen."""
    return f"{'writes':<10}{directory} (config.yaml holds every key)"
