"""D3PG: DDPG whose actor is a reverse diffusion chain (system model, section 10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator, ActorCriticConfig
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.actors.diffusion import SCHEDULES, DiffusionActor
from lightning_t2drl.registry import build
from lightning_t2drl.system import raw_from_shares


@dataclass
class D3PGConfig(ActorCriticConfig):
    """Keys of `configs/allocator/d3pg*.yaml`."""

    denoising_steps: int = 5
    schedule: str = "linear"
    beta_min: float = 0.05
    beta_max: float = 0.3
    prediction: str = "epsilon"
    saturation_penalty: float = 10.0
    decision_samples: int = 1


class D3PGAllocator(ActorCriticAllocator):
    """Deep diffusion deterministic policy gradient.

    Predicted noise (`epsilon`) leaves x_0 unbounded. It is squashed by tanh, because a clamp to [-1, 1] has no gradient
    outside; and as shares do not change when all raw actions grow alike, nothing but `saturation_penalty`, on the
    square of what exceeds [-1, 1], keeps x_0 from drifting to where tanh has none either.
    """

    Config = D3PGConfig
    config: D3PGConfig

    def _check(self) -> None:
        super()._check()
        c = self.config
        within("allocator", c, denoising_steps=(1, 1000), decision_samples=(1, 10_000), saturation_penalty=(0, 1e6))
        one_of("allocator", c, schedule=tuple(SCHEDULES), prediction=("epsilon", "sample"))
        top = 1.0 if c.schedule == "linear" else 1e3
        if not 0 < c.beta_min <= c.beta_max < top:
            raise UserError(f"allocator.beta_min, beta_max: need 0 < beta_min <= beta_max < {top:g} for {c.schedule}")

    def build_actor(self) -> DiffusionActor:
        c = self.config
        trunk = build(c.actor, self.scenario, c.denoising_steps, key="allocator.actor")
        return DiffusionActor(trunk, c.denoising_steps, c.schedule, c.beta_min, c.beta_max, c.prediction)

    def bounded(self, output: Tensor) -> Tensor:
        return output.tanh() if self.unbounded else output

    @property
    def unbounded(self) -> bool:
        """Whether x_0 may leave [-1, 1]."""
        return self.config.prediction == "epsilon"

    @torch.no_grad()
    def act(self, state: Tensor, explore: bool = False) -> Tensor:
        """Raw allocations; without exploration the best of `decision_samples` chains by the critics' judgement."""
        samples = self.config.decision_samples
        if explore or samples == 1:
            return super().act(state, explore)
        many = state.expand(samples, *state.shape)
        shares = self.shares(self.actor, many, self.draw_noise(tuple(many.shape[:-1])))
        best = self.value(self.critics, many, shares).mean(-1).argmax(0)
        return raw_from_shares(torch.take_along_dim(shares, best[None, ..., None, None], 0)[0])

    def actor_loss(self, state: Tensor, noise: Tensor) -> Tensor:
        output = self.actor(state, noise).float()
        loss = -self.value(self.critics, state, self.to_shares(state, output)).mean()
        if self.unbounded:
            # What is left within [-1, 1] has no gradient anyway.
            loss = loss + self.config.saturation_penalty * mse_loss(output, output.detach().clamp(-1.0, 1.0))
        return loss
