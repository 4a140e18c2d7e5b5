"""D3PG: DDPG whose actor is a reverse diffusion chain, or another chain (docs/concepts/learning.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_t2drl.allocators.sampling import SamplingAllocator, SamplingConfig
from lightning_t2drl.networks.actors.base import Actor
from lightning_t2drl.registry import build

DIFFUSION = "lightning_t2drl.networks.actors.diffusion"


@dataclass
class D3PGConfig(SamplingConfig):
    """Keys of `configs/allocator/{d3pg*,flow,consistency}.yaml`."""

    diffusion: Any = field(default_factory=lambda: {"_target_": f"{DIFFUSION}.SampleDiffusion"})


class D3PGAllocator(SamplingAllocator):
    """Deep diffusion deterministic policy gradient; `diffusion` may also be a flow or a consistency model."""

    Config = D3PGConfig
    config: D3PGConfig

    def build_actor(self) -> Actor:
        return build(self.config.diffusion, self.make_trunk, key="allocator.diffusion")
