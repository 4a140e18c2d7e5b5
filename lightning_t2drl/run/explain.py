"""Advice for one situation from a checkpoint, with the proven bound: what `t2drl explain` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from rich.text import Text
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.graphs import OutcomeGraph, names_of
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.oracle import OracleCacher
from lightning_t2drl.deploy.controller import Cell
from lightning_t2drl.deploy.explain import Arrays, Progressed, chosen, explain, feeds_of, read_situation
from lightning_t2drl.envs.worlds import load_per_user
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import as_json, write_atomically
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.tables import plain_table
from lightning_t2drl.system import amend_allocation, amend_cache
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits

FILE = "explanation.json"


@dataclass(frozen=True)
class Explained:
    """What `t2drl explain` found.

    Args:
        advice: see `deploy.explain.explain`, with `bound`, `exact_utility` and `share_of_bound`.
        output_dir: where it was written.
    """

    advice: dict[str, Any]
    output_dir: Path


def run_explain(composed: Composed) -> Explained:
    """Print and write what a pair of policies advises in a situation.

    Raises:
        UserError: the situation cannot be read, or does not fit the policies.
    """
    config, screen = composed.config, console()
    if len(config.slot) != 1:
        raise UserError("slot: name one JSON file that describes the situation; docs/how-to/explain.md has its keys")
    told = read_situation(config.slot[0])
    with Progress(console=screen, transient=True, disable=not config.progress_bar) as progress:
        task = progress.add_task("comparing caches", total=None)
        show: Progressed = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
        advice = explain_situation(*load_policies(composed), told, config.seed, show)
    screen.print(_table(advice), soft_wrap=False)
    for line in sentences(advice):
        screen.print(line)
    with new_directory("explain", config.output_dir) as directory:
        write_atomically(directory / FILE, as_json(advice))
    screen.print(f"written to {directory / FILE}")
    return Explained(advice, directory)


@torch.no_grad()
def explain_situation(
    name: str,
    scenario: Scenario,
    cacher: Cacher,
    allocator: Allocator,
    told: Mapping[str, Any],
    seed: int = 0,
    progress: Progressed = lambda done, total: None,
) -> dict[str, Any]:
    """What a pair of policies advises in a situation, see `deploy.explain.explain`.

    Besides, `bound`: what no allocation exceeds in this slot with this cache; `exact_utility`, what the near-exact
    allocation earns; `share_of_bound` of the advised one, in percent.

    Raises:
        UserError: the situation does not fit the policies; the line names the key.
    """
    cell = PolicyCell(name, scenario, cacher, allocator)
    cacher.seed(seed, "explain")
    allocator.seed(seed, "explain")
    advice = explain(cell, told, seed, progress)
    feeds = feeds_of(cell, told, chosen("cache", advice["cache"], scenario.models))
    slot: dict[str, Any] = _tensors({key: value[None] for key, value in feeds.items()})
    found = slot_bound(scenario, **slot)
    bound, exact = (round(found[key].item(), 5) for key in ("bound", "achieved"))
    share = round(100 * advice["utility"] / bound, 2) if bound > 0 else None
    users = [user | {"exact_bandwidth": round(float(b), 5), "exact_steps": round(float(x), 1)}
             for user, b, x in zip(advice["users"], found["bandwidth"][0], found["steps"][0], strict=True)]  # fmt: skip
    return advice | {"users": users, "exact_utility": exact, "bound": bound, "share_of_bound": share}


class PolicyCell(Cell):
    """A pair of policies as a cell that gives advice; several cells are as many in the same situation."""

    def __init__(self, name: str, scenario: Scenario, cacher: Cacher, allocator: Allocator) -> None:
        facts = {"name": name, "users": None, "popularity": scenario.popularity_observation}
        super().__init__(facts | {"scenario": scenario.as_dict()})
        self.scenario, self.cacher, self.allocator = scenario, cacher, allocator
        self.outcome_graph = OutcomeGraph(scenario, names_of(scenario))

    def cache(
        self, popularity: Any, held: Any = None, users: float | None = None, nearby: Any = None
    ) -> NDArray[np.bool_]:
        """Which models to hold, bool [M]."""
        seen = torch.from_numpy(self._popularity(popularity))
        state = 0
        if self.policy["popularity"] == "state":
            state = int(popularity) % self.scenario.popularity_states
        elif isinstance(self.cacher, OracleCacher):
            raise UserError("popularity: the oracle needs the number of the state, which this scenario does not show")
        if held is None and "cache" in getattr(self.cacher, "needed", ()):
            raise UserError("held: missing; this policy looks at the models that are held now")
        empty = np.zeros(self.models, bool)
        fields = {
            "popularity": seen,
            "popularity_state": torch.tensor(state),
            "cache": torch.from_numpy(empty if held is None else held),
            "load": (self.scenario.users / self.scenario.cells if users is None else users)
            * load_per_user(self.scenario),
            **({"nearby": torch.from_numpy(empty if nearby is None else nearby)} if self.scenario.cooperates else {}),
        }
        cells = self._cells({key: value[None] for key, value in fields.items()}, 1)
        self.cacher.start_episode(cells)
        return amend_cache(self.scenario, self.cacher.decide(cells))[0, 0].numpy()

    def decide(self, feeds: Arrays, generator: np.random.Generator) -> NDArray[np.float32]:
        """Shares [n, U, 2]."""
        tensors = _tensors(feeds)
        cells = self._cells(tensors, len(feeds["request"]))
        try:
            raw = self.allocator.decide(cells)[:, 0]
        except RuntimeError:
            users = feeds["request"].shape[-1]
            raise UserError(f"request: {users} users, but this policy serves {self.scenario.users}") from None
        hit = hits(tensors["cache"], tensors["request"])
        return amend_allocation(raw, hit, tensors["attached"]).numpy()

    def outcome(self, feeds: Arrays, shares: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes of it, [n, U] by column of `OUTCOME`."""
        tensors = _tensors(feeds)
        inputs = [tensors[name] for name in self.outcome_graph.names]
        return self.outcome_graph(*inputs, torch.from_numpy(shares)).numpy()

    def _cells(self, fields: dict[str, Tensor], n: int) -> TensorDict:
        """The same in all cells: [n, B]."""
        b = self.scenario.cells
        spread = {key: value.unsqueeze(1).expand(n, b, *value.shape[1:]) for key, value in fields.items()}
        return TensorDict(spread, batch_size=(n, b))


def _tensors(feeds: Arrays) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in feeds.items()}


def _table(advice: dict[str, Any]) -> Any:
    table = plain_table("user", "model", "from", "share %", "steps", "exact %, steps", "delay s", "utility")
    held = ", ".join(map(str, advice["cache"])) or "nothing"
    table.title = Text(f"{advice['policy']}: cache {held} ({advice['cache_gb']:g} of {advice['storage_gb']:g} GB)")
    for number, user in enumerate(advice["users"]):
        source, share = user["from"].removeprefix("the "), f"{100 * user['bandwidth']:.1f}"
        exact = f"{100 * user['exact_bandwidth']:.1f}, {user['exact_steps']:.0f}"
        delay = f"{user['delay_s']:.1f}" + (" late" if user["late"] else "")
        served = (share, f"{user['steps']:.0f}", exact, delay, f"{user['utility']:.3f}")
        table.add_row(*map(Text, (str(number), str(user["model"]), source, *served)))
    return table


def sentences(advice: dict[str, Any]) -> list[str]:
    """The utility, the bound, and what the next-best cache would cost."""
    share = "" if advice["share_of_bound"] is None else f", {advice['share_of_bound']:.2f} % of it"
    lines = [f"utility of this slot {advice['utility']:.4f}; no allocation exceeds {advice['bound']:.4f} with this "
             f"cache{share}; exact {advice['exact_utility']:.4f}"]  # fmt: skip
    other = advice["next_best"]
    if other is not None:
        cost = f"would cost {other['cost']:.4f}" if other["cost"] >= 0 else f"would be better by {-other['cost']:.4f}"
        lines.append(f"next-best cache: {other['change']}; it {cost} per slot of the {advice['expected_utility']:.4f} "
                     "expected")  # fmt: skip
    return lines
