"""Equal split: the reference that every allocator is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.system import raw_from_shares
from lightning_t2drl.system.serving import hits


@dataclass
class EqualConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class EqualAllocator(Allocator):
    """Bandwidth 1/U for every attached user, the part L/U of the step budget for each hit (docs/concepts/bound.md)."""

    Config = EqualConfig

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        attached = observation["attached"]
        hit = hits(observation["cache"], observation["request"]) & attached
        share = 1.0 / attached.sum(-1, keepdim=True).clamp_min(1)
        return raw_from_shares(torch.stack((share * attached, share * hit), -1))
