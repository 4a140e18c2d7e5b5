"""A learned allocator's decision as a function of what an operator measures, for export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_t2drl.networks.features import State
from lightning_t2drl.system.scenario import Scenario

if TYPE_CHECKING:
    from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator

LEAST_GAIN = 1e-30  # weaker links are taken for this one, so that no float32 overflows
OBSERVED = ("request", "input_bits", "output_bits", "gain", "cache", "attached")


def observed(scenario: Scenario, users: int) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Example inputs of a slot and the axes of theirs that stay open."""
    batch = 3  # 1 would be traced as a constant
    inputs = {
        "request": torch.zeros(batch, users, dtype=torch.int64),
        **{name: torch.ones(batch, users) for name in ("input_bits", "output_bits", "gain")},
        "cache": torch.ones(batch, scenario.models, dtype=torch.bool),
        "attached": torch.ones(batch, users, dtype=torch.bool),
    }
    return inputs, {name: {0: "batch", 1: "users"} for name in inputs} | {"cache": {0: "batch"}}


class AllocatorGraph(nn.Module):
    """One slot's decision, from what an operator measures to feasible shares."""

    def __init__(self, allocator: ActorCriticAllocator) -> None:
        super().__init__()
        self.allocator = allocator

    def state(self, values: tuple[Tensor, ...]) -> State:
        observation = dict(zip(OBSERVED, values, strict=True))
        observation["gain"] = observation["gain"].clamp_min(LEAST_GAIN)
        return self.allocator.features(self.allocator.scenario, observation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Shares [N, U, 2] from `OBSERVED` and, for a diffusion chain, noise [I, N, U, 2]."""
        *values, noise = inputs if self.allocator.actor.steps else (*inputs, torch.empty(0))
        return self.allocator.shares(self.allocator.actor, self.state(tuple(values)), noise)


class CriticGraph(AllocatorGraph):
    """What the critics think of shares, by which the best of several samples is found."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values [N] from `OBSERVED` and shares [N, U, 2]."""
        *values, shares = inputs
        return self.allocator.value(self.allocator.critics, self.state(tuple(values)), shares).mean(-1)
