"""A flow from noise to an action along a velocity field, as flow matching trains one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_t2drl.checks import within
from lightning_t2drl.networks.actors.base import Actor, MakeTrunk, flat
from lightning_t2drl.networks.features import State


@dataclass
class FlowConfig:
    """Keys of `configs/allocator/diffusion/flow.yaml`."""

    _target_: str = ""
    steps: int = 5

    def __post_init__(self) -> None:
        within("", self, steps=(1, 1000))


class FlowActor(Actor):
    """dx/dt = v(x, t, s) from x(0) ~ N(0, I) to the action x(1), in I Euler steps; no noise on the way.

    Flow matching's paths are straight, x(t) = (1 - t) z + t x(1), so v = (x(1) - x(t)) / (1 - t). The network predicts
    through tanh where the path ends, which keeps the action in [-1, 1].
    """

    Config = FlowConfig
    draws = 1

    def __init__(self, make_trunk: MakeTrunk, config: FlowConfig) -> None:
        super().__init__()
        self.steps = self.levels = config.steps
        self.trunk = make_trunk(config.steps)

    def velocity(self, output: Tensor, x: Tensor, step: int) -> Tensor:
        """V at t = step / I, from the network's output there."""
        return (output.tanh() - x) * (self.steps / (self.steps - step))

    def forward(self, state: State, noise: Tensor) -> Tensor:
        """The action [*, U, 2] for states [*] and noise [1, *, U, 2]."""
        rows, batch = flat(state)
        x = noise.reshape(-1, *noise.shape[-2:])
        context = self.trunk.context(rows)  # type: ignore[operator]
        for step in range(self.steps):
            x = x + self.velocity(self.trunk(context, x, step), x, step) / self.steps
        return x.unflatten(0, batch)

    def denoising_loss(self, state: State, clean: Tensor, noise: Tensor) -> Tensor:
        """Flow matching: the squared error of the velocity, a mean over all steps, [*, U]; see `Actor`."""
        rows, batch = flat(state)
        clean = clean.reshape(-1, *clean.shape[-2:]).clamp(-1.0, 1.0)
        noise = noise.reshape(self.levels, -1, *noise.shape[-2:])
        context = self.trunk.context(rows)  # type: ignore[operator]
        errors = []
        for step in range(self.steps):
            x = torch.lerp(noise[step], clean, step / self.steps)
            velocity = self.velocity(self.trunk(context, x, step), x, step)
            errors.append((velocity - (clean - noise[step])).square().mean(-1))
        return torch.stack(errors).mean(0).unflatten(0, batch)
