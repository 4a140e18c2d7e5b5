"""How good a pair of policies is, in episodes whose worlds and random numbers are apart from training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.finite import FiniteWatch
from lightning_t2drl.loop.metrics import service_sums, slot_metrics
from lightning_t2drl.loop.slots import Slot, frame
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import SITUATION

FORESEEN = 32  # slots at most that are looked ahead
Watch = Callable[[EdgeAIGCEnv, Slot | None], None]  # see `evaluate`


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
    watch: Watch = lambda env, slot: None,
) -> dict[str, Tensor]:
    """Play whole episodes without exploration.

    All episodes run side by side. Each slot is drawn from a seed of its own, so that all schemes face the same
    users, requests and fading, and the first episodes are the same however many there are (on the CPU).

    Args:
        episodes: how many.
        seed: of worlds and policies, apart from training's.
        progress: called with (slots done, slots in all).
        watch: called with the environment and None before the first slot, and with every slot after it was served.

    Returns:
        Per-episode means over slots by metric, [episodes] each, on the CPU; `total_utility` is the sum of slot
        rewards, `net_utility` the utility less the cost of loading models.
    """
    env = EdgeAIGCEnv(scenario, episodes, derive_seed(seed, "evaluation"), allocator.device, held_out=True)
    means = EpisodeMeans(env.scenario)
    slots, done, finite = scenario.slots_per_episode, 0, FiniteWatch()
    other = EdgeAIGCEnv(scenario, episodes, 0, allocator.device, held_out=True) if allocator.foresees else None

    def draws(worlds: EdgeAIGCEnv, slot: int) -> None:
        worlds.generator.manual_seed(derive_seed(seed, "evaluation", slot))

    def ahead(other: EdgeAIGCEnv) -> Iterator[Tensor]:
        """Many slots of the frame at once, seen in other worlds that go on as these will, whatever is allocated."""
        other.set_state(env.get_state())
        cells, to_come = other.observe(), range(done, done + scenario.slots_per_frame)
        for some in (to_come[first : first + FORESEEN] for first in range(0, len(to_come), FORESEEN)):
            seen = []
            for slot in some:
                seen.append(cells.select(*(key for key in SITUATION if key in cells)))
                draws(other, slot)
                cells = other.play(torch.zeros(*cells["request"].shape, 2, device=other.device))
            yield from allocator.decide_slots(torch.stack(seen))

    with torch.no_grad(), on_own_randomness(cacher, seed), on_own_randomness(allocator, seed):
        cacher.start_episode(env.observe())
        draws(env, 0)
        watch(env, None)
        for number in range(scenario.frames_per_episode):
            for slot in frame(env, cacher, allocator, ahead=None if other is None else partial(ahead, other)):
                done += 1
                draws(env, done)
                finite.add("the allocation that the allocator returned", slot.raw)
                means.add(slot.following["served"], slot.cells, slot.following["reward", "frame"])
                watch(env, slot)
                progress(done, slots)
            finite.check(f"evaluation, frame {number}")
    return means.take()


class EpisodeMeans:
    """Means over the slots of episodes, by metric; but for what is earned, over those in which somebody asked."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.sums: dict[str, Tensor] = {}
        self.ratios: dict[str, tuple[Tensor, Tensor]] = {}
        self.slots = 0
        self.busy: Tensor | int = 0  # slots in which somebody asked, [N]

    def add(self, served: TensorDict, cells: Mapping[str, Tensor], frame_reward: Tensor) -> None:
        """Add a slot: what the environment says was `served` [N, B], `attached` and `request` of the cells' observation
        [N, B, U], and the frame rewards [N, B, 1].
        """
        attached, request = cells["attached"], cells["request"]
        values = slot_metrics(self.scenario, served, attached, request)
        values["net_utility"] = frame_reward.mean((-1, -2)) * self.scenario.slots_per_frame
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for name, (part, whole) in service_sums(self.scenario, served, attached, request).items():
            before = self.ratios.get(name, (0.0, 0.0))
            self.ratios[name] = (before[0] + part, before[1] + whole)
        self.slots += 1
        self.busy = self.busy + attached.flatten(1).any(-1)

    def take(self) -> dict[str, Tensor]:
        """The means [N], on the CPU, with `total_utility`, the sum of slot rewards.

        A mean over the requests of a service is NaN in an episode that has none.
        """
        busy = torch.as_tensor(self.busy).cpu()
        asked = self.slots if bool((busy == self.slots).all()) else busy
        means = {name: total.cpu() / (self.slots if name in EARNED else asked) for name, total in self.sums.items()}
        means |= {name: (part / whole).cpu() for name, (part, whole) in self.ratios.items()}
        return means | {"total_utility": means["utility"] * self.slots}


EARNED = ("utility", "net_utility")
PER_EPISODE = ("utility", "net_utility", "hit_ratio")  # kept for comparisons with schemes that played fewer episodes


def summarise(per_episode: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Mean and standard error over episodes by metric, and the episodes' own values of `PER_EPISODE`.

    Episodes in which a mean is not defined, as nobody asked for the service, are left out of it.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, values in per_episode.items():
        values = values.double()
        values = values[~values.isnan()]
        error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
        out[name] = {"mean": values.mean().item(), "standard_error": error.item()}
        if name in PER_EPISODE:
            out[name]["episodes"] = [round(v, 7) for v in values.tolist()]
    return out
