"""Caches as sets of models that fit the storage (docs/concepts/system.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

STORAGE_SLACK = 1e-9  # relative; storage sums are float64, so this only forgives their last digits


def fits(scenario: Scenario, cache: Tensor) -> Tensor:
    """Whether sum_m rho_m c_m <= C; bool [*] for cache [*, M]."""
    return (cache * scenario.model_storage).sum(-1) <= scenario.storage_capacity * (1 + STORAGE_SLACK)


def amend_cache(scenario: Scenario, cache: Tensor) -> Tensor:
    """Cut a cache decision down to the storage: models are kept in index order while the sum of those asked for fits.

    Args:
        cache: bool [*, M].

    Returns:
        bool [*, M] with sum_m rho_m c_m <= C; a feasible decision passes unchanged.
    """
    used = (cache * scenario.model_storage).cumsum(-1)
    return cache & (used <= scenario.storage_capacity * (1 + STORAGE_SLACK))


def fill_in_order(scenario: Scenario, priority: Tensor) -> Tensor:
    """The maximal cache that takes models by falling priority and skips those that no longer fit; ties by index.

    Args:
        priority: [*, M].

    Returns:
        bool [*, M]; no model left out would fit beside those taken.
    """
    order = priority.argsort(dim=-1, descending=True, stable=True)
    size = scenario.model_storage[order]
    limit = scenario.storage_capacity * (1 + STORAGE_SLACK)
    used = torch.zeros(priority.shape[:-1], dtype=torch.float64, device=priority.device)
    taken = []
    for position in range(scenario.models):  # greedy with skipping is sequential in the models, batched over the rest
        take = used + size[..., position] <= limit
        used = used + size[..., position] * take
        taken.append(take)
    return torch.zeros_like(priority, dtype=torch.bool).scatter_(-1, order, torch.stack(taken, -1))


def all_caches(scenario: Scenario) -> tuple[Tensor, Tensor]:
    """Every subset of models and whether it fits: bool [2^M, M] and bool [2^M]; bit m of the index is model m."""
    index = torch.arange(2**scenario.models, device=scenario.model_storage.device)
    subsets = (index[:, None] >> torch.arange(scenario.models, device=index.device)) & 1 == 1
    return subsets, fits(scenario, subsets)
