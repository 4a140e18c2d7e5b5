"""The cache that is best on average when every slot is allocated near-exactly: the oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system.bounds.slot import slot_bound
from lightning_t2drl.system.caching import all_caches, fill_in_order, fits
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits
from lightning_t2drl.system.world import draw_noise, initial_state, new_slot, split_noise


@dataclass(frozen=True)
class OracleCaches:
    """The best cache of each popularity state and what it brings."""

    cache: Tensor  # bool [J, M]
    bound: Tensor  # expected upper bound per slot [J]
    achieved: Tensor  # expected utility per slot of the allocation found [J]
    hit_ratio: Tensor  # [J]


def oracle_caches(scenario: Scenario, slots: int, seed: int) -> OracleCaches:
    """The cache that maximises expected utility under exact allocation, for every true popularity state.

    All caches meet the same `slots` sampled slots. Up to 12 models every feasible cache is compared, by successive
    halving: each round drops the worse three quarters and quadruples the slots. With more models a local search
    starts from the most popular ones and adds, drops or swaps one model at a time.

    Args:
        slots: sampled in the last round.
        seed: of the sampling.
    """
    caches, bounds, achieved, ratios = [], [], [], []
    for state in range(scenario.popularity_states):
        sample = _sample_slots(scenario, state, slots, seed)
        if scenario.models <= 12:
            cache = _by_halving(scenario, sample, slots)
        else:
            cache = _by_local_search(scenario, sample, state, max(slots // 16, 16))
        last = _solve(scenario, sample, cache.unsqueeze(0), slots, rounds=2)
        caches.append(cache)
        bounds.append(last["bound"].mean())
        achieved.append(last["achieved"].mean())
        ratios.append(hits(cache.expand(slots, -1), sample["request"]).float().mean())
    return OracleCaches(torch.stack(caches), torch.stack(bounds), torch.stack(achieved), torch.stack(ratios))


def _sample_slots(scenario: Scenario, state: int, slots: int, seed: int) -> dict[str, Tensor]:
    """Independent slots of one popularity state, users uniform in the cell; [slots, U] each."""
    device = scenario.request_probability.device
    generator = torch.Generator(device=device).manual_seed(seed)
    world = initial_state(scenario, slots, generator)
    popularity = torch.full((slots, scenario.cells), state, device=device)
    noise = split_noise(scenario, draw_noise(scenario, slots, generator))
    slot = new_slot(scenario, popularity, world["position"], noise)
    return {key: value[:, 0] for key, value in slot.items()}


def _solve(
    scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, rounds: int, counts: int = 4
) -> TensorDict:
    """`slot_bound` of the first `slots` slots for every cache, [A, slots]."""
    first = {key: value[:slots].unsqueeze(0).expand(len(caches), -1, -1) for key, value in sample.items()}
    cache = caches.unsqueeze(1).expand(-1, slots, -1)
    return slot_bound(
        scenario,
        first["request"],
        first["input_bits"],
        first["output_bits"],
        first["gain"],
        cache,
        first["attached"],
        rounds,
        counts,
    )


def _by_halving(scenario: Scenario, sample: dict[str, Tensor], slots: int) -> Tensor:
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    number = 16
    while len(caches) > 1:
        number = min(number, slots)
        counts = 0 if number < slots and len(caches) > 256 else 4  # the plain dual is enough to tell the worst
        parts = caches.split(256)
        scores = torch.cat([_solve(scenario, sample, part, number, 0, counts)["bound"].mean(-1) for part in parts])
        keep = 1 if number == slots else max(len(caches) // 4, 4)
        caches = caches[scores.topk(min(keep, len(caches))).indices]
        number *= 4
    return caches[0]


def _by_local_search(scenario: Scenario, sample: dict[str, Tensor], state: int, slots: int) -> Tensor:
    best = fill_in_order(scenario, scenario.request_probability[state])
    score = _solve(scenario, sample, best.unsqueeze(0), slots, rounds=0)["bound"].mean(-1)
    change = torch.eye(scenario.models, dtype=torch.bool, device=best.device)
    moves = torch.cat((change, (change.unsqueeze(0) ^ change.unsqueeze(1)).flatten(0, 1).unique(dim=0)))
    while True:
        near = best ^ moves
        near = near[fits(scenario, near)]
        scores = torch.cat([_solve(scenario, sample, part, slots, 0)["bound"].mean(-1) for part in near.split(256)])
        if scores.max() <= score:
            return best
        best, score = near[scores.argmax()], scores.max()
