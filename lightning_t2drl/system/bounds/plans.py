"""How much an episode can earn where loading models is charged for: the best plan of caches, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.bounds.caches import mean_bounds
from lightning_t2drl.system.bounds.sampling import sample_slots
from lightning_t2drl.system.caching import all_caches
from lightning_t2drl.system.scenario import Scenario

MAX_MODELS = 12  # every pair of caches is compared


@dataclass(frozen=True)
class CacheTable:
    """What every feasible cache is worth in every popularity state."""

    caches: Tensor  # bool [A, M]
    utility: Tensor  # mean of a slot with near-exact allocation (its upper bound), float64 [J, A]


def cache_table(
    scenario: Scenario, slots: int, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> CacheTable:
    """All caches of one cell on the same `slots` slots of each popularity state.

    Raises:
        UserError: there are several cells, users who are not always there, more than 12 models, or recorded demand.
    """
    if scenario.models > MAX_MODELS or not scenario.one_crowd:
        raise UserError(
            f"env={scenario.name}: plans of caches are for one cell whose users are always there, at most {MAX_MODELS} "
            "models, and no recorded demand"
        )
    subsets, feasible = all_caches(scenario)
    caches, rows = subsets[feasible], []
    for state in range(scenario.popularity_states):
        sample = {key: value[:, 0] for key, value in sample_slots(scenario, state, slots, seed).items()}
        rows.append(mean_bounds(scenario, sample, caches))
        progress(state + 1, scenario.popularity_states)
    return CacheTable(caches, torch.stack(rows).double())


def best_plan(scenario: Scenario, table: CacheTable) -> float:
    """The highest expected utility per slot, less loading, of an episode that begins with nothing cached.

    At each frame's start the popularity state and what is held are known; popularity moves as the scenario says, also
    within a frame. Backward induction over frames: V_f(s, c) = max over c' of W_f(s, c') - charge(c, c').
    """
    slots = scenario.slots_per_frame
    sizes = scenario.model_storage * (scenario.switch_cost * slots)  # a charge is taken from a frame's mean
    held = table.caches.double() * sizes
    charge = held.sum(-1) - table.caches.double() @ held.T  # [A, A], of going from a row's cache to a column's
    step = scenario.popularity_transition.double()
    value = torch.zeros_like(table.utility)
    for end in range(scenario.slots_per_episode, 0, -slots):
        for slot in range(end - 1, end - slots - 1, -1):
            moved = step @ value if (slot + 1) % scenario.popularity_change_every == 0 else value
            value = table.utility + moved
        value = (value.unsqueeze(1) - charge).amax(-1)
    empty = (~table.caches.any(-1)).nonzero()[0, 0]
    first = torch.full((len(step),), 1 / len(step), dtype=torch.float64)
    return float(first @ value[:, empty]) / scenario.slots_per_episode


def best_held(scenario: Scenario, table: CacheTable) -> float:
    """The same of the best cache that is loaded once and held, whatever is asked for."""
    sizes = (table.caches * scenario.model_storage).sum(-1)
    earned = -scenario.switch_cost * scenario.slots_per_frame * sizes
    likely = torch.full((len(table.utility),), 1 / len(table.utility), dtype=torch.float64)
    for slot in range(scenario.slots_per_episode):
        earned = earned + likely @ table.utility
        if (slot + 1) % scenario.popularity_change_every == 0:
            likely = likely @ scenario.popularity_transition.double()
    return float(earned.max()) / scenario.slots_per_episode
