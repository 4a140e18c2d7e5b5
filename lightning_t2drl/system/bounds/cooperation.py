"""The caches of cells that fetch misses from each other: what one holds is worth something to all others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.alternatives import TOGETHER, bounds_of_caches
from lightning_t2drl.system.bounds.sampling import neighbours, sample_slots
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import situation

SWEEPS = 6


def cooperative_caches(
    scenario: Scenario, start: Tensor, slots: int, seed: int, done: Callable[[], None] = lambda: None
) -> Tensor:
    """Caches by cell and popularity state, bool [B, J, M], by coordinate ascent from `start` [B, J, M].

    Each cell decides by its own popularity state alone. In turn each cell and state takes the best change by one model
    (one added, dropped or swapped): best for the users of all cells, over sampled slots in which the others hold what
    their own states call for. Ends when a sweep changes nothing. No world is worse off on average than with `start`,
    but as with any local search a better set of caches may exist. `done` is called after every turn.
    """
    caches = start.clone()
    for _ in range(SWEEPS):
        changed = False
        for state in range(scenario.popularity_states):
            for cell in range(scenario.cells):
                sample = sample_slots(scenario, state, slots, seed, cell)
                here = caches[cell, state]
                offered = torch.cat((here.unsqueeze(0), neighbours(scenario, here)))
                scores = world_score(scenario, sample, held(caches, sample), cell, offered)
                best = int(scores.argmax())
                if scores[best] > scores[0] + 1e-6:
                    caches[cell, state], changed = offered[best], True
                done()
        if not changed:
            break
    return caches


def held(caches: Tensor, sample: dict[str, Tensor]) -> Tensor:
    """What each cell of the sampled slots holds, bool [slots, B, M]."""
    return caches[torch.arange(len(caches), device=caches.device), sample["popularity"]]


def world_score(scenario: Scenario, sample: dict[str, Tensor], holds: Tensor, cell: int, offered: Tensor) -> Tensor:
    """Expected bound per user of the whole world for each cache [A, M] that one cell might hold, [A]."""
    users = sample["attached"].sum(-1)
    given = situation({key: value for key, value in sample.items() if key != "popularity"})
    scores = []
    for part in offered.split(max(TOGETHER // users.numel(), 1)):
        caches = holds.repeat(len(part), 1, 1, 1)
        caches[:, :, cell] = part.unsqueeze(1)
        bound = bounds_of_caches(scenario, given, caches, held_elsewhere(caches), counts=0)
        scores.append((bound * users).sum((-1, -2)) / users.sum().clamp_min(1))
    return torch.cat(scores)
