"""One evaluation from a checked config: what `evaluate.py` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import resolve
from lightning_t2drl.loop.evaluation import evaluate, summarise
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.registry import typed
from lightning_t2drl.run.schemas import EnvConfig, EvaluateConfig, build_policies
from lightning_t2drl.run.tables import schemes_table
from lightning_t2drl.system.scenario import Scenario

SECTIONS = ("env", "cacher", "allocator")


def run_evaluation(config: EvaluateConfig, raw: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Evaluate a checkpoint, or a pair of policies named in the config, and print a table.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it.
        overrides: the command line; with a checkpoint, what it says of env, cacher and allocator changes the
            checkpoint's own config, the rest of which stays.

    Returns:
        What `output` holds: scenario, episodes, seed, and per scheme the mean and standard error of every metric.
    """
    console = Console()
    name, scenario, cacher, allocator = _schemes(config, raw, overrides, console)
    with Progress(console=console, transient=True, disable=not config.progress_bar) as progress:
        task = progress.add_task("evaluating", total=scenario.slots_per_episode)
        per_episode = evaluate(
            scenario,
            cacher,
            allocator,
            config.episodes,
            config.seed,
            lambda done, total: progress.update(task, completed=done),
        )
    results = {
        "name": name,
        "scenario": scenario.name,
        "episodes": config.episodes,
        "seed": config.seed,
        "deadline": scenario.deadline,
        "schemes": {name: summarise(per_episode)},
    }
    console.print(schemes_table(results))
    if config.output is not None:
        try:
            Path(config.output).write_text(json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"output: {config.output} cannot be written ({error.strerror})") from None
    return results


def _schemes(
    config: EvaluateConfig, raw: DictConfig, overrides: list[str], console: Console
) -> tuple[str, Scenario, Cacher, Allocator]:
    if config.checkpoint is None:
        policies = build_policies(config.env, config.cacher, config.allocator)
        return f"{_short(config.cacher)}+{_short(config.allocator)}", *policies
    path, checkpoint = resolve(config.checkpoint, lambda text: console.print(text, style="yellow"))
    return load_policies(checkpoint, path, raw, overrides)


def load_policies(
    checkpoint: dict[str, Any], path: Path, raw: DictConfig, overrides: list[str]
) -> tuple[str, Scenario, Cacher, Allocator]:
    """The policies of a checkpoint, in its own scenario or in one that the overrides change.

    Raises:
        UserError: the changed config does not fit the parameters, such as a flat network for another number of users.
    """
    stored = checkpoint[KEY]["config"]
    replaced = [name for name in SECTIONS if any(o.startswith(f"{name}=") for o in overrides)]
    sections: dict[str, Any] = {
        name: OmegaConf.to_container(raw[name], resolve=True)
        if name in replaced
        else _amended(name, stored[name], overrides)
        for name in SECTIONS
    }
    env = typed(EnvConfig, sections["env"], "env")
    scenario, cacher, allocator = build_policies(env, sections["cacher"], sections["allocator"])
    for name, policy in (("cacher", cacher), ("allocator", allocator)):
        if name in replaced:
            continue
        prefix = f"{name}."
        parameters = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        try:
            policy.load_state_dict(parameters)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip()[:160]
            raise UserError(
                f"checkpoint: {path} does not fit the changed config; only set networks serve other numbers of users, "
                f"and a cacher is bound to its models and popularity states ({detail})"
            ) from None
    name = "+".join([stored["name"], *(_short(sections[section]) for section in replaced if section != "env")])
    return name, scenario, cacher, allocator


def _amended(name: str, stored: Any, overrides: list[str]) -> Any:
    """A section of the checkpoint's config under the overrides of its keys."""
    keys = [o.removeprefix(f"{name}.") for o in overrides if o.startswith(f"{name}.")]
    return OmegaConf.to_container(OmegaConf.merge(stored, OmegaConf.from_dotlist(keys)), resolve=True)


def _short(section: Any) -> str:
    """`random` from `lightning_t2drl.cachers.random.RandomCacher`."""
    return str(section["_target_"]).split(".")[-2]
