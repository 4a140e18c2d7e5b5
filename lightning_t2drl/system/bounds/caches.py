"""The oracle's cache: the best on average when every slot is allocated near-exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.alternatives import TOGETHER, bounds_of_caches
from lightning_t2drl.system.bounds.cooperation import SWEEPS, cooperative_caches, held
from lightning_t2drl.system.bounds.sampling import neighbours, sample_slots
from lightning_t2drl.system.bounds.slot import slot_bound
from lightning_t2drl.system.caching import all_caches, fill_in_order
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits, situation


@dataclass(frozen=True)
class OracleCaches:
    """The best cache of each popularity state, with several cells for each cell, and what it brings."""

    cache: Tensor  # bool [J, M], or [B, J, M] with several cells
    bound: Tensor  # expected upper bound per slot and user [J] or [B, J]
    achieved: Tensor  # likewise of the allocation found
    hit_ratio: Tensor  # likewise

    def of(self, popularity: Tensor) -> Tensor:
        """The caches for the true popularity states, bool [*, B, M] from int64 [*, B]."""
        if self.cache.ndim == 2:
            return self.cache[popularity]
        return self.cache[torch.arange(len(self.cache), device=popularity.device), popularity]


def oracle_caches(
    scenario: Scenario, slots: int, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> OracleCaches:
    """The cache that maximises expected utility under exact allocation, for every cell and true popularity state.

    All caches meet the same `slots` slots, sampled from the scenario itself: with the users that a cell has there. Up
    to 12 models every feasible cache is compared, by successive halving: each round drops the worse three quarters,
    and what is worse than the best by four standard errors, and quadruples the slots. With more models a local search
    starts from the most popular ones and adds, drops or swaps one model at a time. Cells that fetch misses from each
    other go on from there together, see `cooperative_caches`.

    Args:
        slots: sampled in the last round, in all cells together (but 64 in each).
        seed: of the sampling.
        progress: called after every search, with how many are done and the most that there can be.
    """
    states, cells = scenario.popularity_states, scenario.cells
    slots = min(max(slots // cells, 64), slots)
    turns = count(1)
    most = states * cells * (2 + SWEEPS if scenario.cooperates else 2)

    def done() -> None:
        progress(next(turns), most)

    cache = torch.empty(cells, states, scenario.models, dtype=torch.bool, device=scenario.demands.device)
    worth = torch.empty(cells, states, 3, device=cache.device)
    for state in range(states):
        sample = sample_slots(scenario, state, slots, seed)
        for cell in range(cells):
            cache[cell, state] = _best_of_cell(scenario, sample, state, cell)
            done()
    if scenario.cooperates:
        cache = cooperative_caches(scenario, cache, max(slots // 4, 16), seed, done)
    for cell in range(cells):
        for state in range(states):
            worth[cell, state] = _worth(scenario, cache, state, cell, slots, seed)
            done()
    found = (cache, *worth.unbind(-1))
    return OracleCaches(*(value.squeeze(0) if cells == 1 else value for value in found))


def _best_of_cell(scenario: Scenario, sample: dict[str, Tensor], state: int, cell: int) -> Tensor:
    """The best cache of one cell in one popularity state, for itself; bool [M]."""
    own = {key: value[:, cell] for key, value in sample.items()}
    slots = len(own["request"])
    if scenario.models <= 12:
        return _by_halving(scenario, own, slots)
    popular = scenario.demands[scenario.demand(torch.full((scenario.cells,), state))[cell]]
    return _by_local_search(scenario, own, popular, max(slots // 16, 16))


def _worth(scenario: Scenario, caches: Tensor, state: int, cell: int, slots: int, seed: int) -> Tensor:
    """What one of the caches [B, J, M] brings its cell per user: bound, utility achieved and hit ratio, [3]."""
    sample = sample_slots(scenario, state, slots, seed, cell)
    nearby = {"nearby": held_elsewhere(held(caches, sample))} if scenario.cooperates else {}
    own = {key: value[:, cell] for key, value in (sample | nearby).items()}
    cache, attached = caches[cell, state], own["attached"]
    found = slot_bound(scenario, **situation(own), cache=cache.expand(slots, -1))
    hit = hits(cache.expand(slots, -1), own["request"]) & attached
    of_slots = (_per_user(found[key], attached).mean() for key in ("bound", "achieved"))
    return torch.stack((*of_slots, hit.sum() / attached.sum().clamp_min(1)))


def _per_user(per_slot: Tensor, attached: Tensor) -> Tensor:
    """What is given as means over each slot's users, weighted so that the mean over slots is one over all users.

    Both [A, slots], from [A, slots] and [*, U].
    """
    users = attached[: per_slot.shape[-1]].sum(-1).to(per_slot)
    return per_slot * (users / users.mean().clamp_min(1 / len(users)))


def _score(scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, counts: int = 4) -> Tensor:
    """The bound of every cache in every one of a cell's first slots, weighted by its users, [A, slots]."""
    first = situation({key: value[:slots] for key, value in sample.items()})
    parts = caches.unsqueeze(1).expand(-1, slots, -1).split(max(TOGETHER // slots, 1))
    bounds = [bounds_of_caches(scenario, first, part, counts=counts) for part in parts]
    return _per_user(torch.cat(bounds), sample["attached"])


def mean_bounds(scenario: Scenario, sample: dict[str, Tensor], caches: Tensor) -> Tensor:
    """The bound of every cache [A, M] per user over all slots of one cell's sample, [A]."""
    return _score(scenario, sample, caches, len(sample["request"])).mean(-1)


def _by_halving(scenario: Scenario, sample: dict[str, Tensor], slots: int) -> Tensor:
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    number = max(160 * scenario.cells // scenario.users, 4)  # with more users a slot says more
    while len(caches) > 1:
        number = min(number, slots)
        counts = 0 if number < slots and len(caches) > 256 else 4  # the plain dual is enough to find the worst
        scores = _score(scenario, sample, caches, number, counts)
        best, order = scores.mean(-1).topk(max(len(caches) // 4, min(len(caches), 4)))
        if number == slots:
            return caches[order[0]]
        worse = (scores[order[0]] - scores)[order]
        surely = worse.mean(-1) > 4 * worse.std(-1) / number**0.5 if number >= 16 else torch.zeros_like(best).bool()
        caches = caches[order[~surely]]
        number *= 4
    return caches[0]


def _by_local_search(scenario: Scenario, sample: dict[str, Tensor], popular: Tensor, slots: int) -> Tensor:
    best = fill_in_order(scenario, popular)
    score = _score(scenario, sample, best.unsqueeze(0), slots).mean()
    while True:
        near = neighbours(scenario, best)
        scores = _score(scenario, sample, near, slots).mean(-1)
        if scores.max() <= score:
            return best
        best, score = near[scores.argmax()], scores.max()
