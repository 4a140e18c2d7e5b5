"""A consistency model: one or two evaluations lead from noise to an action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_t2drl.checks import Misfit, within
from lightning_t2drl.networks.actors.base import Actor, MakeTrunk, flat
from lightning_t2drl.networks.features import State

DATA = 0.5  # standard deviation that actions are taken to have


@dataclass
class ConsistencyConfig:
    """Keys of `configs/allocator/diffusion/consistency.yaml`."""

    _target_: str = ""
    steps: int = 1
    levels: int = 8
    sigma_min: float = 0.02
    sigma_max: float = 10.0

    def __post_init__(self) -> None:
        within("", self, steps=(1, 1000), levels=(2, 1000))
        if not 0 < self.sigma_min < self.sigma_max < 1e3:
            raise Misfit("sigma_min, sigma_max: need 0 < sigma_min < sigma_max < 1000")
        if self.steps >= self.levels:
            raise Misfit(f"steps: {self.steps} must be below levels, {self.levels}")


class ConsistencyActor(Actor):
    """f(x, sigma, s) gives for any point of a noisy path the action where the path ends.

    f = c x + (1 - c) tanh(network) with c = DATA^2 / ((sigma - sigma_min)^2 + DATA^2), so f(x, sigma_min) = x, as a
    consistency function must. A decision is f at the highest of the `levels`; each further step adds noise of a lower
    level to the action and applies f again.
    """

    Config = ConsistencyConfig

    def __init__(self, make_trunk: MakeTrunk, config: ConsistencyConfig) -> None:
        super().__init__()
        self.steps = self.draws = config.steps
        self.levels = config.levels
        self.trunk = make_trunk(config.levels)
        ratio = config.sigma_max / config.sigma_min
        self.sigmas = [config.sigma_min * ratio ** (n / (config.levels - 1)) for n in range(config.levels)]
        self.visited = [config.levels - 1 - step * (config.levels - 1) // config.steps for step in range(config.steps)]

    def consistent(self, context: object, x: Tensor, level: int) -> Tensor:
        """F at a level, [n, U, 2]."""
        sigma = self.sigmas[level]
        keep = DATA**2 / ((sigma - self.sigmas[0]) ** 2 + DATA**2)
        output = self.trunk(context, x / (sigma**2 + DATA**2) ** 0.5, level)
        return keep * x + (1 - keep) * output.tanh()

    def forward(self, state: State, noise: Tensor) -> Tensor:
        """The action [*, U, 2] for states [*] and noise [steps, *, U, 2]."""
        rows, batch = flat(state)
        noise = noise.reshape(self.draws, -1, *noise.shape[-2:])
        context = self.trunk.context(rows)  # type: ignore[operator]
        x = torch.zeros_like(noise[0])
        for step, level in enumerate(self.visited):
            x = self.consistent(context, x + self.sigmas[level] * noise[step], level)
        return x.unflatten(0, batch)

    def denoising_loss(self, state: State, clean: Tensor, noise: Tensor) -> Tensor:
        """The squared error of f against the clean action, a mean over all levels but the lowest, [*, U]; see `Actor`.

        The action is known, so f is told it, as consistency policies are; between levels of images it would be told f.
        """
        rows, batch = flat(state)
        clean = clean.reshape(-1, *clean.shape[-2:]).clamp(-1.0, 1.0)
        noise = noise.reshape(self.levels, -1, *noise.shape[-2:])
        context = self.trunk.context(rows)  # type: ignore[operator]
        errors = []
        for level in range(1, self.levels):
            end = self.consistent(context, clean + self.sigmas[level] * noise[level], level)
            errors.append((end - clean).square().mean(-1))
        return torch.stack(errors).mean(0).unflatten(0, batch)
