"""A double-Q cacher for large catalogues: a value per model, the best cache by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_t2drl.cachers.q_learning import QLearningCacher, QLearningConfig
from lightning_t2drl.checks import within
from lightning_t2drl.system.scenario import Scenario


@dataclass
class KnapsackConfig(QLearningConfig):
    """Keys of `configs/cacher/knapsack.yaml`."""

    network: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.q.ModelValueNetwork"})
    resolution: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, resolution=(10, 100_000))


def knapsack(values: Tensor, sizes: Sequence[int], capacity: int) -> Tensor:
    """The subsets of highest total value that fit, by dynamic programming over whole-numbered sizes.

    Args:
        values: [n, M]; models of negative value are never taken.
        sizes: whole numbers [M], at least 1.
        capacity: the same for all.

    Returns:
        bool [n, M]. Work grows as n M capacity.
    """
    n, models = values.shape
    values = values.detach()
    best = values.new_zeros(n, capacity + 1)
    taken = torch.zeros(models, n, capacity + 1, dtype=torch.bool, device=values.device)
    for m, size in enumerate(sizes):
        if size <= capacity:
            with_m = best[:, : capacity + 1 - size] + values[:, m : m + 1]
            without = best[:, size:]
            torch.gt(with_m, without, out=taken[m, :, size:])
            torch.maximum(with_m, without, out=without)
    room = torch.full((n, 1), capacity, device=values.device)
    chosen = []
    for m in reversed(range(models)):
        chosen.append(taken[m].gather(-1, room))
        room = room - chosen[-1] * sizes[m]
    return torch.cat(chosen[::-1], -1)


def whole_sizes(shares: Tensor, resolution: int) -> tuple[Tensor, int]:
    """Sizes as whole numbers and the capacity in the same unit, from sizes as shares of the capacity, float64 [M]."""
    for units in range(1, resolution + 1):
        scaled = shares * units
        if bool(((scaled - scaled.round()).abs() < 1e-6).all()):
            return scaled.round().long(), units
    return (shares * resolution).ceil().clamp_min(1).long(), resolution


class KnapsackCacher(QLearningCacher):
    """Double Q-learning with an additive value; its cost grows with M, not with 2^M.

    Sizes are counted in the largest unit of which all of them and the storage are multiples. If the storage has more
    than `resolution` such units, sizes are rounded up to 1/`resolution` of it, so that every choice still fits.
    """

    Config = KnapsackConfig
    config: KnapsackConfig

    def __init__(self, scenario: Scenario, config: KnapsackConfig) -> None:
        super().__init__(scenario, config)
        sizes, self.capacity = whole_sizes(scenario.model_storage / scenario.storage_capacity, config.resolution)
        self.sizes: list[int] = sizes.tolist()

    def build_network(self) -> nn.Module:
        return self.make_network(self.scenario.models, additive=True)

    def best(self, network: nn.Module, state: Tensor, held: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        values = (network(state) if row is None else network(state)[row]).float()
        if held is not None:
            values = values - (self.scenario.switch_cost * self.scenario.model_storage).float() * ~held
        return knapsack(values.flatten(0, -2), self.sizes, self.capacity).view_as(values)
