"""Why a pair of policies is as good as it is: what an actor's spread, its critics and its decisions look like.

Measured in the first slot of worlds of its own, with generators of its own, so that a run's bits do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from tensordict import TensorDict

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.evaluation import on_own_randomness
from lightning_t2drl.seeding import derive_seed, make_generator
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import steps_of

WORLDS = 32

MEANINGS = {
    "actor_spread": "standard deviation of the actor's actions, over states and noise",
    "chain_noise": "share of that which its own noise makes, 0 to 1",
    "critic_correlation": "correlation of Q with the true utility over perturbed actions in one state, -1 to 1",
    "critic_cosine_bandwidth": "cosine of dQ/da with the true gradient, actions on bandwidth",
    "critic_cosine_steps": "the same, actions on steps",
    "steps_below_floor": "share of the step budget granted that goes to hits below A1, where it buys nothing",
    "hit_ratio": "hits of the cacher, with requests that another cell serves",
    "hit_ratio_popular": "hits of popular caching in the same slots",
    "violation_ratio": "late users of the allocator",
    "violation_ratio_exact": "late users of the exact allocation with the same caches",
}


def diagnose(
    scenario: Scenario, cacher: Cacher, allocator: Allocator, seed: int, worlds: int = WORLDS
) -> dict[str, float]:
    """What `MEANINGS` lists, as far as the pair has it: an allocator that does not learn has no critics."""
    env = EdgeAIGCEnv(scenario, worlds, derive_seed(seed, "diagnosis"), allocator.device)
    start = env.get_state()
    exact = ExactAllocator(env.scenario, ExactConfig(counts=0)).to(allocator.device)  # near enough to count late users
    popular = PopularCacher(env.scenario, PopularConfig()).to(allocator.device)
    with torch.no_grad(), on_own_randomness(cacher, seed), on_own_randomness(allocator, seed):
        cacher.start_episode(env.observe())
        cache = cacher.decide(env.observe())
        cells = env.latch(cache)
        measured = _decisions(env.scenario, cells, env.play(allocator.decide(cells)))
        measured |= allocator.diagnosis(cells, make_generator(allocator.device, seed, "diagnosis", "actor"))
        for name, other, decided in (("violation_ratio_exact", exact, cache), ("hit_ratio_popular", None, None)):
            env.set_state(start)
            latched = env.latch(popular.decide(env.observe()) if decided is None else decided)
            found = _decisions(env.scenario, latched, env.play((other or allocator).decide(latched)))
            measured[name] = found[name.rpartition("_")[0]]
    return {name: measured[name] for name in MEANINGS if name in measured}


def _decisions(scenario: Scenario, cells: TensorDict, following: TensorDict) -> dict[str, float]:
    """Hits, late users and wasted steps of a slot."""
    served, attached = following["served"], cells["attached"]
    users = attached.sum().clamp_min(1)
    share = served["shares"][..., 1]
    hit = served["hit"] | served.get("nearby", torch.zeros_like(attached))
    below = share * (steps_of(scenario, cells["request"], share) <= scenario.floor_steps[cells["request"]])
    return {
        "steps_below_floor": (below.sum() / share.sum().clamp_min(1e-9)).item(),
        "hit_ratio": (hit.sum() / users).item(),
        "violation_ratio": (served["violated"].sum() / users).item(),
    }


# -- in words

WHERE = "measured in the first slot of worlds of its own:"


class Progress(NamedTuple):
    """An evaluation along a run."""

    frame: int
    utility: float


FALLS = 0.02  # of the best utility, from which a run counts as not converged
LATE = 0.02  # more late users than the exact allocation has
FEW = 0.1  # fewer hits than popular caching has; a few less may serve better
NOISY = 0.7  # share of noise in an actor's spread that hides the state
LOW = 0.6  # a correlation or cosine below which critics point nowhere in particular


def unset(cacher: Cacher, allocator: Allocator) -> list[str]:
    """The overrides that mended the published form (docs/deviations.md) and that these two policies are without."""
    words = [f"{owner}.discount=0" for owner, policy in (("cacher", cacher), ("allocator", allocator))
             if getattr(getattr(policy, "config", None), "discount", 0)
             and not (owner == "cacher" and policy.scenario.switch_cost)]  # fmt: skip
    critics = getattr(allocator, "critics", ())
    networks = {"actor": getattr(getattr(allocator, "actor", None), "trunk", None), "critic": next(iter(critics), None)}
    for part, key in (("critic", "per_user"), ("actor", "hits"), ("critic", "hits")):
        if getattr(networks[part], key, True) is False:
            words.append(f"allocator.{part}.{key}=true")
    return words


def signatures(measured: dict[str, float], curve: Sequence[Progress] = (), lacking: Sequence[str] = ()) -> list[str]:
    """The failures that the paper names, one line each with the likely cause; empty where there is none.

    Args:
        measured: of `diagnose`.
        curve: the run's evaluations in order.
        lacking: of `unset`.
    """
    lines = []
    best = max(curve, key=lambda row: row.utility, default=None)
    if best is not None and curve[-1].utility < best.utility - FALLS * max(abs(best.utility), 0.1):
        lines.append(
            f"poor convergence: utility fell from {best.utility:.3f} at frame {best.frame} to "
            f"{curve[-1].utility:.3f}; {_allocation_cause(measured, lacking) or _caching_cause(measured, lacking)}"
        )
    elif len(curve) > 2 and all(abs(b.utility - a.utility) < 1e-9 for a, b in pairwise(curve)):
        few = "too few frames for any update (loop.slot_warmup, allocator.actor_warmup)"
        lines.append(f"poor convergence: utility never changed; {few}")
    late, exact = measured["violation_ratio"], measured["violation_ratio_exact"]
    if late > exact + LATE:
        cause = _allocation_cause(measured, lacking) or "the allocation is not yet learned (frames), or saw other loads"
        lines.append(f"late users: {late:.1%}, where exact allocation has {exact:.1%}; {cause}")
    hits, popular = measured["hit_ratio"], measured["hit_ratio_popular"]
    if hits < popular - FEW:
        lines.append(
            f"few hits: {hits:.1%}, where popular caching has {popular:.1%}; {_caching_cause(measured, lacking)}"
        )
    if measured["steps_below_floor"] > 0.02:
        lines.append(
            f"wasted steps: {measured['steps_below_floor']:.1%} of them go to hits below the floor; "
            "allocator.head.drop_wasted=true of allocator/head=competitive grants none in vain"
        )
    return lines


def _allocation_cause(measured: dict[str, float], lacking: Sequence[str]) -> str | None:
    """What the actor or its critics suffer from."""
    if measured.get("chain_noise", 0) > NOISY and measured["actor_spread"] > 0.1:
        return (
            f"{measured['chain_noise']:.0%} of the actor's spread is its own noise (allocator/diffusion=sample, or a "
            "larger allocator.diffusion.epsilon_bound)"
        )
    if (correlation := measured.get("critic_correlation", 1)) < LOW:
        more = _more(lacking, "allocator")
        return f"the critics hardly see the action (correlation {correlation:.2f} with the truth; {more})"
    cosines = [measured[name] for name in ("critic_cosine_bandwidth", "critic_cosine_steps") if name in measured]
    if cosines and min(cosines) < LOW / 2:
        return f"the critics' gradient points elsewhere than the true one (cosine {min(cosines):.2f}; train longer)"
    return None


def _more(lacking: Sequence[str], owner: str) -> str:
    """What may help one of the policies."""
    return " or ".join(["more frames", *(word for word in lacking if word.startswith(f"{owner}."))])


def _caching_cause(measured: dict[str, float], lacking: Sequence[str]) -> str:
    """What the cacher suffers from."""
    lost = measured["hit_ratio_popular"] - measured["hit_ratio"]
    if lost > 0:
        return f"the cacher lets {lost:.1%} of hits slide ({_more(lacking, 'cacher')})"
    return "neither actor, critics nor cacher explain it; compare seeds"
