"""How good a pair of policies is, in episodes whose worlds and random numbers are apart from training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.checks import within
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.finite import FiniteWatch
from lightning_t2drl.loop.metrics import slot_metrics
from lightning_t2drl.loop.slots import frame
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario


@dataclass
class EvaluationConfig:
    """Keys of `evaluation` in `configs/train.yaml`."""

    every_n_frames: int = 200
    episodes: int = 50
    final_episodes: int = 200
    seed: int = 1_000_003

    def __post_init__(self) -> None:
        within("evaluation", self, every_n_frames=(0, 1e9), episodes=(1, 1e6), final_episodes=(0, 1e6))
        within("evaluation", self, seed=(0, 2**63 - 1))


@contextmanager
def on_own_randomness(policy: Cacher | Allocator, seed: int) -> Iterator[None]:
    """Seed a policy for an evaluation; afterwards restore its memory and generator."""
    before = policy.extra_state()
    policy.seed(seed, "evaluation", type(policy).__name__)
    try:
        yield
    finally:
        policy.load_extra_state(before)


def evaluate(
    scenario: Scenario,
    cacher: Cacher,
    allocator: Allocator,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Play whole episodes without exploration.

    All episodes run side by side. Each slot is drawn from a seed of its own, so that all schemes face the same
    users, requests and fading, and the first episodes are the same however many there are (on the CPU).

    Args:
        episodes: how many.
        seed: of worlds and policies, apart from training's.
        progress: called with (slots done, slots in all).

    Returns:
        Per-episode means over slots by metric, [episodes] each, on the CPU; `total_utility` is the sum of slot
        rewards, `net_utility` the utility less the cost of loading models.
    """
    env = EdgeAIGCEnv(scenario, episodes, derive_seed(seed, "evaluation"), allocator.device)
    sums: dict[str, Tensor] = {}
    slots, done, watch = scenario.slots_per_episode, 0, FiniteWatch()
    with torch.no_grad(), on_own_randomness(cacher, seed), on_own_randomness(allocator, seed):
        cacher.start_episode(env.observe())
        env.generator.manual_seed(derive_seed(seed, "evaluation", 0))
        for number in range(scenario.frames_per_episode):
            for slot in frame(env, cacher, allocator):
                done += 1
                env.generator.manual_seed(derive_seed(seed, "evaluation", done))
                watch.add("the allocation that the allocator returned", slot.raw)
                values = slot_metrics(env.scenario, slot.following["served"], slot.cells["attached"])
                values["net_utility"] = slot.following["reward", "frame"].mean((-1, -2)) * scenario.slots_per_frame
                for name, value in values.items():
                    sums[name] = sums[name] + value if name in sums else value
                progress(done, slots)
            watch.check(f"evaluation, frame {number}")
    means = {name: (total / slots).cpu() for name, total in sums.items()}
    return means | {"total_utility": means["utility"] * slots}


PER_EPISODE = ("utility", "net_utility", "hit_ratio")  # kept for comparisons with schemes that played fewer episodes


def summarise(per_episode: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Mean and standard error over episodes by metric, and the episodes' own values of `PER_EPISODE`."""
    out: dict[str, dict[str, Any]] = {}
    for name, values in per_episode.items():
        values = values.double()
        error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
        out[name] = {"mean": values.mean().item(), "standard_error": error.item()}
        if name in PER_EPISODE:
            out[name]["episodes"] = [round(v, 7) for v in values.tolist()]
    return out
