"""One evaluation from a composed config: what `t2drl evaluate` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import Progress

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.building import build_policies
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.oracle import OracleCacher, OracleConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.checks import listing
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import as_json, write_atomically
from lightning_t2drl.loop.evaluation import Watch, evaluate, summarise
from lightning_t2drl.loop.records import Recorder
from lightning_t2drl.loop.slots import Slot
from lightning_t2drl.loop.state import tell_of_parameters
from lightning_t2drl.loop.stored import KEY, flatten
from lightning_t2drl.policy import Policy
from lightning_t2drl.run.compose import PAIR, Composed
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.tables import bound_line, rows, schemes_table, services_table
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario

RESULT = "evaluation.json"
Progressed = Callable[[str, int, int], None]  # what is done, how much of it, and of how much in all


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        name: of the scheme.
        results: what `evaluation.json` holds: scenario, episodes, seed, and per scheme every metric's mean, standard
            error and, of some, the episodes' own values; of the oracle also `bound`, see `bound_line`.
        output_dir: where it was written.
    """

    name: str
    results: dict[str, Any]
    output_dir: Path

    @property
    def schemes(self) -> pd.DataFrame:
        """One row per scheme and metric: `scheme`, `metric`, `mean`, `standard_error`."""
        return tidy(self.results)


def tidy(results: dict[str, Any]) -> pd.DataFrame:
    """The means and standard errors of `evaluation.json`, one row per scheme and metric."""
    return pd.DataFrame(
        {"scheme": name, "metric": metric, "mean": values["mean"], "standard_error": values["standard_error"]}
        for name, scheme in rows(results)
        for metric, values in scheme.items()
    )


def run_evaluation(composed: Composed) -> Evaluation:
    """Evaluate a checkpoint, or a pair of policies named in the config, print a table and write `evaluation.json`.

    Raises:
        UserError: the pair cannot be built, or the result cannot be written.
    """
    config, screen = composed.config, console()
    with new_directory("evaluate", config.output_dir) as directory:
        with Progress(console=screen, transient=True, disable=not config.progress_bar) as progress:
            task = progress.add_task("evaluating", total=1)

            def show(scheme: str, done: int, total: int) -> None:
                progress.update(task, description=f"evaluating: {scheme}", completed=done, total=total)

            results = play(composed, show, screen.print, directory / "records" if config.records else None)
        screen.print(schemes_table(results), soft_wrap=False)
        if line := bound_line(results):
            screen.print(line)
        if (by_service := services_table(results, results["name"])) is not None:
            screen.print(by_service, soft_wrap=False)
        write_atomically(directory / RESULT, as_json(results))
    screen.print(f"written to {directory / RESULT}")
    return Evaluation(results["name"], results, directory)


def play(
    composed: Composed,
    progress: Progressed = lambda scheme, done, total: None,
    say: Callable[[str], None] = print,
    records: Path | None = None,
) -> dict[str, Any]:
    """Play what is composed and its references: what `evaluation.json` holds.

    Args:
        composed: the config.
        progress, say: called with scheme, slots done and slots in all (or caches compared), and with what is left out.
        records: where every decision is written, see `loop.records`; None: nowhere.

    Raises:
        UserError: what is asked for cannot be built.
    """
    config = composed.config
    pair = load_policies(composed)
    return compare(*pair, config.episodes, config.seed, config.references, progress, say, records)


def compare(
    name: str,
    scenario: Scenario,
    cacher: Cacher,
    allocator: Allocator,
    episodes: int,
    seed: int,
    references: Sequence[str],
    progress: Progressed = lambda scheme, done, total: None,
    say: Callable[[str], None] = print,
    records: Path | None = None,
) -> dict[str, Any]:
    """A pair and the references on the same worlds, as `evaluation.json` holds it.

    References have a place of their own, so that no name of a scheme can stand for one of them. Records of the pair
    go to `scheme/` below `records`, those of a reference to a directory of its name.
    """

    def played(directory: str, cacher: Cacher, allocator: Allocator) -> dict[str, Any]:
        show = partial(progress, name if directory == "scheme" else directory)
        show(0, 1)
        with ExitStack() as stack:
            watches: list[Watch] = []
            if records is not None:
                watches.append(stack.enter_context(Recorder(records / directory, scenario, episodes, oracle)))
            bound = _Bound(allocator) if directory == "oracle" and isinstance(allocator, ExactAllocator) else None
            watches += [bound] if bound else []

            def watch(env: EdgeAIGCEnv, slot: Slot | None) -> None:
                for each in watches:
                    each(env, slot)

            means = evaluate(scenario, cacher, allocator, episodes, seed, show, watch)
        return summarise(means | ({"bound": bound.total} if bound else {}))

    pairs = {reference: REFERENCES[reference](scenario) for reference in references}
    oracle = pairs["oracle"][0] if "oracle" in pairs else None
    for each in (cacher, oracle):
        if isinstance(each, OracleCacher):
            each.tell = partial(progress, "oracle is comparing caches")
    scheme = played("scheme", cacher, allocator)
    beside = {}
    for reference, pair in pairs.items():
        try:
            beside[reference] = played(reference, *pair)
        except UserError as error:  # such as more caches than an oracle can try
            say(f"{reference}: left out, {error}")
    return {
        "name": name,
        "scenario": scenario.name,
        "users": scenario.users,
        "values": digest(scenario),
        "episodes": episodes,
        "seed": seed,
        "deadline": scenario.deadline if isinstance(scenario.deadline, float) else None,
        "hindsight": scenario.recorded_demand,  # whether the oracle knows the frame's own requests
        "schemes": {name: scheme},
        "references": beside,
    }


class _Bound:
    """Sums what no allocation exceeds while the near-exact one plays: `total` [N], of the kind of total utility."""

    def __init__(self, allocator: ExactAllocator) -> None:
        self.allocator = allocator
        self.total = torch.tensor(0.0)

    def __call__(self, env: EdgeAIGCEnv, slot: Slot | None) -> None:
        if slot is not None and self.allocator.bound is not None:
            users = slot.cells["attached"].sum(-1)  # [N, B]; utility is a mean over all users of a world
            mean = (self.allocator.bound * users).sum(-1) / users.sum(-1).clamp_min(1)
            self.total = self.total + mean.cpu()


def digest(scenario: Scenario) -> str:
    """A few characters that tell scenarios of one name apart."""
    return hashlib.sha256(json.dumps(scenario.as_dict(), sort_keys=True).encode()).hexdigest()[:8]


REFERENCES: dict[str, Callable[[Scenario], tuple[Cacher, Allocator]]] = {
    "rcars": lambda s: (RandomCacher(s, RandomConfig()), EqualAllocator(s, EqualConfig())),
    "oracle": lambda s: (OracleCacher(s, OracleConfig()), ExactAllocator(s, ExactConfig())),
}


def load_policies(composed: Composed) -> tuple[str, Scenario, Cacher, Allocator]:
    """Name, world and policies of a composed config; those of a checkpoint with its parameters.

    Raises:
        UserError: the config does not fit the parameters, such as a flat network for another number of users.
    """
    config = composed.config
    torch.manual_seed(derive_seed(getattr(config, "seed", 0), "parameters"))  # of what no checkpoint holds
    scenario, cacher, allocator = build_policies(config.env, config.cacher, config.allocator)
    if composed.checkpoint is not None:
        path, content = composed.checkpoint
        for section, policy in zip(PAIR, (cacher, allocator), strict=True):
            if section not in composed.exchanged:
                _load_parameters(policy, section, content, composed.plain, path)
    return str(config.name), scenario, cacher, allocator


def _load_parameters(
    policy: Policy, section: str, content: Mapping[str, Any], plain: Mapping[str, Any], path: Path
) -> None:
    prefix, stored = f"{section}.", content["state_dict"]
    try:
        policy.load_state_dict({k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)})
        tell_of_parameters(policy, section, content[KEY])
    except RuntimeError as error:
        then, now = (
            flatten({key: config[key] for key in ("env", section)}) for config in (content[KEY]["config"], plain)
        )
        changed = [key for key in then if key in now and then[key] != now[key]]
        detail = str(error).splitlines()[1].strip()
        raise UserError(
            f"checkpoint: {path} does not fit the changed config; its {section} was made with other values of "
            f"{listing(changed) or 'its keys'}; only set networks serve other numbers of users, and a cacher is bound "
            f"to its models and popularity states ({detail})"
        ) from None
