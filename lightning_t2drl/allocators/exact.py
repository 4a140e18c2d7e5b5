"""Near-exact allocation of every slot by its dual: what the oracle does once the cache is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.checks import within
from lightning_t2drl.system import raw_from_shares
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.service import of_model
from lightning_t2drl.system.serving import situation


@dataclass
class ExactConfig:
    """Keys of `configs/allocator/exact.yaml`."""

    _target_: str = ""
    rounds: int = 2
    counts: int = 4

    def __post_init__(self) -> None:
        within("", self, rounds=(0, 1000), counts=(0, 1000))


class ExactAllocator(Allocator):
    """The feasible allocation that `slot_bound` finds; its distance from the bound is known slot by slot.

    `bound` [N, B] is what no allocation exceeds in the slot last decided, with the caches that were held.
    """

    Config = ExactConfig
    config: ExactConfig
    bound: Tensor | None = None

    @property
    def foresees(self) -> bool:
        """Many slots at once take far less than one after the other; not if a subclass decides."""
        return type(self).decide is ExactAllocator.decide and type(self).act is Allocator.act

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        return next(self.decide_slots(observation.unsqueeze(0)))

    def decide_slots(self, observations: TensorDict) -> Iterator[Tensor]:
        found = slot_bound(
            self.scenario, **situation(observations), rounds=self.config.rounds, counts=self.config.counts
        )
        bought = of_model(self.scenario.budget_steps, observations["request"])
        raw = raw_from_shares(torch.stack((found["bandwidth"], found["steps"] / bought), -1))
        for bound, of_slot in zip(found["bound"], raw, strict=True):
            self.bound = bound
            yield of_slot
