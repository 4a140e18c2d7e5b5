"""The oracle's cache: the best on average when every slot is allocated near-exactly."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system.bounds.slot import slot_bound
from lightning_t2drl.system.caching import all_caches, fill_in_order, fits
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits, situation
from lightning_t2drl.system.world import advance, draw_noise, initial_state, new_slot, split_noise


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


def oracle_caches(scenario: Scenario, slots: int, seed: int) -> OracleCaches:
    """The cache that maximises expected utility under exact allocation, for every cell and true popularity state.

    All caches meet the same `slots` slots, sampled from the scenario itself: with the users that a cell has there. Up
    to 12 models every feasible cache is compared, by successive halving: each round drops the worse three quarters
    and quadruples the slots. With more models a local search starts from the most popular ones and adds, drops or
    swaps one model at a time.

    Args:
        slots: sampled in the last round.
        seed: of the sampling.
    """
    rows: list[list[Tensor]] = [[] for _ in fields(OracleCaches)]
    for state in range(scenario.popularity_states):
        sample = sample_slots(scenario, state, slots, seed)
        for cell in range(scenario.cells):
            for row, value in zip(rows, _best_of_cell(scenario, sample, state, cell, slots), strict=True):
                row.append(value)
    by_state = [torch.stack(row).unflatten(0, (-1, scenario.cells)).transpose(0, 1) for row in rows]
    return OracleCaches(*(value.squeeze(0) if scenario.cells == 1 else value for value in by_state))


def _best_of_cell(
    scenario: Scenario, sample: dict[str, Tensor], state: int, cell: int, slots: int
) -> tuple[Tensor, ...]:
    """The best cache of one cell in one popularity state, with its bound, what is achieved and the hit ratio."""
    own = {key: value[:, cell] for key, value in sample.items()}
    if scenario.models <= 12:
        cache = _by_halving(scenario, own, slots)
    else:
        popular = scenario.demands[scenario.demand(torch.full((scenario.cells,), state))[cell]]
        cache = _by_local_search(scenario, own, popular, max(slots // 16, 16))
    last = _solve(scenario, own, cache.unsqueeze(0), slots, rounds=2)
    asked = own["attached"].sum().clamp_min(1)
    hit_ratio = (hits(cache.expand(slots, -1), own["request"]) & own["attached"]).sum() / asked
    return cache, *(_per_user(last[key], own["attached"]).squeeze(0) for key in ("bound", "achieved")), hit_ratio


def _per_user(per_slot: Tensor, attached: Tensor) -> Tensor:
    """Mean over all users of what is given as means over each slot's users: [A] from [A, slots] and [slots, U]."""
    users = attached[: per_slot.shape[-1]].sum(-1)
    if bool((users == users[:1]).all()):
        return per_slot.mean(-1)
    return (per_slot * users).sum(-1) / users.sum().clamp_min(1)


SETTLE = 5  # slots after which users are spread over the cells as they always are, hysteresis included


def sample_slots(scenario: Scenario, state: int | None, slots: int, seed: int) -> dict[str, Tensor]:
    """Independent slots with all cells in one popularity state, or each in its own where that is None; [slots, B, *].

    What `slot_bound` takes but for caches, by name; and `popularity` [slots, B].
    """
    device = scenario.request_probability.device
    generator = torch.Generator(device=device).manual_seed(seed)
    world = initial_state(scenario, slots, generator)
    for _ in range(0 if scenario.cells == 1 else SETTLE):
        world = advance(scenario, world, draw_noise(scenario, slots, generator))
    if state is not None:
        world["popularity"] = torch.full_like(world["popularity"], state)
    noise = split_noise(scenario, draw_noise(scenario, slots, generator))
    return situation(new_slot(scenario, world, noise)) | {"popularity": world["popularity"]}


def _solve(
    scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, rounds: int, counts: int = 4
) -> TensorDict:
    """`slot_bound` of one cell's first `slots` slots for every cache, [A, slots]."""
    shared = situation({key: value[:slots] for key, value in sample.items()})
    first = {key: value.expand(len(caches), *value.shape) for key, value in shared.items()}
    cache = caches.unsqueeze(1).expand(-1, slots, -1)
    return slot_bound(scenario, **first, cache=cache, rounds=rounds, counts=counts)


def _score(scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, counts: int = 4) -> Tensor:
    """The expected bound of every cache, [A]."""
    return _per_user(_solve(scenario, sample, caches, slots, 0, counts)["bound"], sample["attached"])


def _by_halving(scenario: Scenario, sample: dict[str, Tensor], slots: int) -> Tensor:
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    number = 16
    while len(caches) > 1:
        number = min(number, slots)
        counts = 0 if number < slots and len(caches) > 256 else 4  # the plain dual is enough to find the worst
        parts = caches.split(256)
        scores = torch.cat([_score(scenario, sample, part, number, counts) for part in parts])
        keep = 1 if number == slots else max(len(caches) // 4, 4)
        caches = caches[scores.topk(min(keep, len(caches))).indices]
        number *= 4
    return caches[0]


def _by_local_search(scenario: Scenario, sample: dict[str, Tensor], popular: Tensor, slots: int) -> Tensor:
    best = fill_in_order(scenario, popular)
    score = _score(scenario, sample, best.unsqueeze(0), slots)
    change = torch.eye(scenario.models, dtype=torch.bool, device=best.device)
    moves = torch.cat((change, (change.unsqueeze(0) ^ change.unsqueeze(1)).flatten(0, 1).unique(dim=0)))
    while True:
        near = best ^ moves
        near = near[fits(scenario, near)]
        scores = torch.cat([_score(scenario, sample, part, slots) for part in near.split(256)])
        if scores.max() <= score:
            return best
        best, score = near[scores.argmax()], scores.max()
