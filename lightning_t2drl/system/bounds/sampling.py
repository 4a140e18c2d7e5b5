"""Slots to compare caches on, and the caches that lie near one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.caching import fits
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import situation
from lightning_t2drl.system.world import advance, draw_noise, initial_state, new_slot, split_noise

SETTLE = 5  # slots after which users are spread over the cells as they always are, hysteresis included


def sample_slots(scenario: Scenario, state: int, slots: int, seed: int, cell: int | None = None) -> dict[str, Tensor]:
    """Independent slots of the scenario itself in one popularity state, [slots, B, *] by name of `slot_bound`.

    Args:
        state: the popularity state.
        cell: the one that is in it, while the others are in states of their own; None: all are. With a shared
            chain all are in any case.

    Returns:
        What `slot_bound` takes but for caches, and `popularity` [slots, B].
    """
    device = scenario.request_probability.device
    generator = torch.Generator(device=device).manual_seed(seed)
    world = initial_state(scenario, slots, generator)
    for _ in range(0 if scenario.cells == 1 else SETTLE):
        world = advance(scenario, world, draw_noise(scenario, slots, generator))
    popularity = world["popularity"].clone()
    popularity[:, slice(None) if cell is None or scenario.chains == 1 else cell] = state
    world["popularity"] = popularity
    noise = split_noise(scenario, draw_noise(scenario, slots, generator))
    return situation(new_slot(scenario, world, noise)) | {"popularity": popularity}


def neighbours(scenario: Scenario, cache: Tensor) -> Tensor:
    """The feasible caches that differ from one [M] by a model added, dropped or swapped for another, bool [A, M]."""
    change = torch.eye(scenario.models, dtype=torch.bool, device=cache.device)
    moves = torch.cat((change, (change.unsqueeze(0) ^ change.unsqueeze(1)).flatten(0, 1).unique(dim=0)))
    near = cache ^ moves
    return near[fits(scenario, near)]
