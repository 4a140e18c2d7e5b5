"""D3PG: DDPG whose actor is a reverse diffusion chain (docs/concepts/learning.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator, ActorCriticConfig
from lightning_t2drl.checks import within
from lightning_t2drl.networks.actors.diffusion import DiffusionActor
from lightning_t2drl.policy import Exported
from lightning_t2drl.registry import build
from lightning_t2drl.system.amender import raw_from_shares

DIFFUSION = "lightning_t2drl.networks.actors.diffusion"


@dataclass
class D3PGConfig(ActorCriticConfig):
    """Keys of `configs/allocator/d3pg*.yaml`."""

    diffusion: Any = field(default_factory=lambda: {"_target_": f"{DIFFUSION}.SampleDiffusion"})
    decision_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, decision_samples=(1, 10_000))


class D3PGAllocator(ActorCriticAllocator):
    """Deep diffusion deterministic policy gradient."""

    Config = D3PGConfig
    config: D3PGConfig

    def build_actor(self) -> DiffusionActor:
        return build(self.config.diffusion, self.make_trunk, key="allocator.diffusion")

    @torch.no_grad()
    def act(self, state: TensorDict, explore: bool = False) -> Tensor:
        """Raw allocations; without exploration the best of `decision_samples` chains by the critics' judgement."""
        samples = self.config.decision_samples
        if explore or samples == 1:
            return super().act(state, explore)
        many = {key: value.expand(samples, *value.shape) for key, value in state.to_dict().items()}
        shares = self.shares(self.actor, many, self.draw_noise(many))
        value = self.value(self.critics, many, shares)
        if self.per_user and not self.scenario.one_crowd:
            value = value * many["attached"]
        best = value.mean(-1).argmax(0)
        return raw_from_shares(torch.take_along_dim(shares, best[None, ..., None, None], 0)[0])

    def export(self) -> Exported:
        exported = super().export()
        exported.facts["decision_samples"] = self.config.decision_samples
        return exported
