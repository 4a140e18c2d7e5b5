"""SAC's actor: a normal distribution squashed by tanh."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_t2drl.networks.actors.base import Actor, MakeTrunk, flat
from lightning_t2drl.networks.features import State

LOWEST, HIGHEST = -5.0, 1.0  # of the logarithm of the standard deviation


class GaussianActor(Actor):
    """An action tanh(x), x ~ N(mean(s), deviation(s)^2).

    Any network that denoises in two steps can be its network: the first step gives the mean, the second, which is shown
    the mean, the logarithm of the standard deviation.
    """

    draws = 1

    def __init__(self, make_trunk: MakeTrunk) -> None:
        super().__init__()
        self.steps = 2
        self.trunk = make_trunk(2)

    def squash(self, x: Tensor) -> Tensor:
        return x.tanh()

    def moments(self, state: State) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation, [*, U, 2] each, for states [*]."""
        rows, batch = flat(state)
        context = self.trunk.context(rows)  # type: ignore[operator]
        mean = self.trunk(context, rows["hit"].new_zeros((*rows["hit"].shape, 2), dtype=torch.float32), 0)
        unit = self.trunk(context, mean, 1).tanh()
        log_deviation = LOWEST + (HIGHEST - LOWEST) * (unit + 1) / 2
        return mean.unflatten(0, batch), log_deviation.unflatten(0, batch)

    def forward(self, state: State, noise: Tensor) -> Tensor:
        """An x [*, U, 2] for states [*] and noise [1, *, U, 2]; noise 0 gives the mean."""
        return self.sample(state, noise)[0]

    def sample(self, state: State, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An x and the log-density of the action tanh(x), [*, U, 2] each: one per number."""
        mean, log_deviation = (value.float() for value in self.moments(state))
        x = mean + log_deviation.exp() * noise[0]
        log_normal = -0.5 * noise[0].square() - log_deviation - 0.5 * math.log(2 * math.pi)
        return x, log_normal - 2 * (math.log(2) - x - softplus(-2 * x))  # the latter is log(1 - tanh(x)^2)
