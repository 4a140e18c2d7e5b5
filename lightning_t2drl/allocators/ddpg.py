"""DDPG: the benchmark whose actor maps a state straight to an allocation."""

from __future__ import annotations

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator, ActorCriticConfig
from lightning_t2drl.networks.actors.direct import DirectActor


class DDPGAllocator(ActorCriticAllocator):
    """Deep deterministic policy gradient with the configured network as its actor."""

    Config = ActorCriticConfig

    def build_actor(self) -> DirectActor:
        return DirectActor(self.make_trunk)
