"""The command line as Python functions, for scripts and notebooks: train, evaluate, load a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.graphs import names_of
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.deploy.explain import read_situation
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import prepare_process, run
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.evaluate import Evaluation, load_policies
from lightning_t2drl.run.explain import explain_situation
from lightning_t2drl.run.overrides import as_override
from lightning_t2drl.run.training import Training
from lightning_t2drl.system import amend_cache
from lightning_t2drl.system.scenario import Scenario


def train(*overrides: str, **keys: Any) -> Training:
    """Train, as `t2drl train` does: `train("experiment=quickstart", frames=20, env={"users": 5}, output_dir="runs/a")`.

    Args:
        *overrides: words as on the command line, flags such as `--config-dir=DIR` included.
        **keys: the same as Python values; nested keys as dicts, or with `__` for the dot: `env__users=5`.

    Raises:
        UserError: one line on what the user can mend; nothing has been written.
    """
    return run("train", _words(overrides, keys))


def evaluate(*overrides: str, **keys: Any) -> Evaluation:
    """Evaluate, as `t2drl evaluate` does: `evaluate(checkpoint="runs/a/checkpoints/best", episodes=50)`.

    Args:
        *overrides, **keys: as of `train`.

    Raises:
        UserError: one line on what the user can mend.
    """
    return run("evaluate", _words(overrides, keys))


def load_policy(checkpoint: str | Path, *overrides: str, trust: Sequence[str] = (), **keys: Any) -> TrainedPair:
    """The pair of policies in a checkpoint, in the world it was trained in or another.

    Args:
        checkpoint: a file, a run's directory, or DIR/last, DIR/best.
        *overrides, **keys: change env, cacher or allocator, as with `t2drl evaluate`.
        trust: modules outside this project whose classes the checkpoint may name.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit the changes.
    """
    prepare_process()
    if isinstance(trust, str):
        raise UserError(f"trust: {trust!r}; it must be a list of modules, as in trust=[{trust!r}]")
    words = _words(overrides, {"checkpoint": str(checkpoint), "trust": list(trust)} | keys)
    name, scenario, cacher, allocator = load_policies(compose("evaluate", words))
    return TrainedPair(name, scenario, cacher.eval(), allocator.eval())


def _words(overrides: Sequence[str], keys: dict[str, Any]) -> list[str]:
    if wrong := [word for word in overrides if not isinstance(word, str)]:
        raise UserError(f'{wrong[0]!r}: no word of the command line, such as "experiment=quickstart"')
    return [*overrides, *(word for key, value in keys.items() for word in as_override(key, value))]


@dataclass(frozen=True)
class TrainedPair:
    """A cacher and an allocator that decide.

    Args:
        name: of the scheme.
        scenario: the world it decides in.
        cacher, allocator: of the two timescales.
    """

    name: str
    scenario: Scenario
    cacher: Cacher
    allocator: Allocator

    def __repr__(self) -> str:
        """In short, without the scenario's tables."""
        policies = f"{type(self.cacher).__name__} and {type(self.allocator).__name__}"
        return (
            f"<{type(self).__name__} {self.name}: {policies} on env={self.scenario.name}, {self.scenario.users} users>"
        )

    def explain(self, situation: str | Path | Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """What to cache in a situation, who gets what, how far that is from the bound, what the next-best cache costs.

        Args:
            situation: a JSON file or its content, see `deploy.explain.KEYS`.
            seed: of the slots on which caches are compared, and of the policies.

        Raises:
            UserError: the situation does not fit; the line names the key.
        """
        told = read_situation(situation)
        return explain_situation(self.name, self.scenario, self.cacher, self.allocator, told, seed)

    @torch.no_grad()
    def decide(self, cells: TensorDict, frame_start: bool = True, episode_start: bool = False) -> TensorDict:
        """The action for an observation of the cells [N, B].

        Args:
            cells: `EdgeAIGCEnv`'s observation, `tensordict["cells"]` of a reset or a step; it is not changed.
            frame_start: whether the slot starts a frame; in others the cache that is held stays.
            episode_start: whether the episode begins; for cachers that remember what was requested.

        Returns:
            `cache` bool [N, B, M] and the raw `allocation` [N, B, U, 2], which the environment makes feasible.

        Raises:
            UserError: this is no observation of cells, or of a world with other models.
        """
        hand_over = 'hand over tensordict["cells"] of a reset or a step'
        if not isinstance(cells, TensorDictBase) or "request" not in cells:
            raise UserError(f"cells: no observation of cells; {hand_over}")
        if missing := [name for name in ("popularity", "load", *names_of(self.scenario)) if name not in cells]:
            raise UserError(f"cells: {', '.join(missing)} missing; {hand_over}")
        if (models := cells["cache"].shape[-1]) != self.scenario.models:
            raise UserError(f"cells: of {models} models, but this policy decides on {self.scenario.models}")
        cells = cells.clone(False)
        if episode_start:
            self.cacher.start_episode(cells)
        cache = self.cacher.decide(cells) if frame_start else cells["cache"]
        cells["cache"] = amend_cache(self.scenario, cache) if frame_start else cache
        self.cacher.observe(cells)
        action = {"cache": cache, "allocation": self.allocator.decide(cells)}
        return TensorDict(action, batch_size=cells.batch_size)
