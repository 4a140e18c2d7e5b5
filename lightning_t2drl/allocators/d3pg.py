"""D3PG: DDPG whose actor is a reverse diffusion chain (system model, section 10)."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator, ActorCriticConfig
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.diffusion import SCHEDULES, DiffusionActor
from lightning_t2drl.registry import build


@dataclass
class D3PGConfig(ActorCriticConfig):
    """Keys of `configs/allocator/d3pg*.yaml`."""

    denoising_steps: int = 5
    schedule: str = "vp"
    beta_min: float = 0.1
    beta_max: float = 10.0
    prediction: str = "epsilon"


class D3PGAllocator(ActorCriticAllocator):
    """Deep diffusion deterministic policy gradient."""

    Config = D3PGConfig
    config: D3PGConfig

    def _check(self) -> None:
        super()._check()
        c = self.config
        within("allocator", c, denoising_steps=(1, 1000))
        one_of("allocator", c, schedule=tuple(SCHEDULES), prediction=("epsilon", "sample"))
        top = 1.0 if c.schedule == "linear" else 1e3
        if not 0 < c.beta_min <= c.beta_max < top:
            raise UserError(f"allocator.beta_min, beta_max: need 0 < beta_min <= beta_max < {top:g} for {c.schedule}")

    def build_actor(self) -> DiffusionActor:
        c = self.config
        trunk = build(c.actor, self.scenario, c.denoising_steps, key="allocator.actor")
        return DiffusionActor(trunk, c.denoising_steps, c.schedule, c.beta_min, c.beta_max, c.prediction)
