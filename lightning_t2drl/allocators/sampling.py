"""Decisions of actors that are random: one sample, the best of several by the critics, or their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator, ActorCriticConfig
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.networks.features import State
from lightning_t2drl.policy import Exported
from lightning_t2drl.system.amender import raw_from_shares

DECISIONS = ("best", "mean")


@dataclass
class SamplingConfig(ActorCriticConfig):
    """Keys of allocators whose actor draws noise."""

    decision_samples: int = 1
    decision: str = "best"
    decision_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, decision_samples=(1, 10_000), decision_noise=(0, 10))
        one_of("", self, decision=DECISIONS)


class SamplingAllocator(ActorCriticAllocator):
    """An actor whose decisions outside training are made of `decision_samples`, with noise times `decision_noise`."""

    Config = SamplingConfig
    config: SamplingConfig

    def decision_noise(self, state: State, explore: bool) -> Tensor:
        noise = self.draw_noise(state)
        return noise if explore else noise * self.config.decision_noise

    @torch.no_grad()
    def act(self, state: TensorDict, explore: bool = False) -> Tensor:
        samples = self.config.decision_samples
        if explore or samples == 1:
            return super().act(state, explore)
        many = {key: value.expand(samples, *value.shape) for key, value in state.to_dict().items()}
        shares = self.shares(self.actor, many, self.decision_noise(many, explore), explore)
        if self.config.decision == "mean":
            return raw_from_shares(shares.mean(0))
        value = self.value(self.critics, many, shares)
        if self.per_user and not self.scenario.one_crowd:
            value = value * many["attached"]
        best = value.mean(-1).argmax(0)
        return raw_from_shares(torch.take_along_dim(shares, best[None, ..., None, None], 0)[0])

    @property
    def exported_draws(self) -> int:
        return self.actor.draws if self.config.decision_noise else 0

    def decision(self, state: State, noise: Tensor) -> Tensor:
        if not self.exported_draws:
            noise = torch.zeros((self.actor.draws, *state["hit"].shape, 2), device=state["hit"].device)
        return self.shares(self.actor, state, noise * self.config.decision_noise, explore=False)

    def export(self) -> Exported:
        if self.config.decision == "mean" and self.config.decision_samples > 1:
            raise self.refuse("decides by a mean of samples, which an exported policy does not; use decision=best")
        exported = super().export()
        exported.facts["decision_samples"] = self.config.decision_samples if self.exported_draws else 1
        return exported
