"""Random caching: a random order of models, kept while they fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.system.caching import fill_in_order


@dataclass
class RandomConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class RandomCacher(Cacher):
    """A random feasible maximal cache per frame: no further model fits (the caching half of RCARS)."""

    Config = RandomConfig

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        priority = torch.rand(
            (*observation.batch_size, self.scenario.models), generator=self.generator, device=self.generator.device
        )
        return fill_in_order(self.scenario, priority)
