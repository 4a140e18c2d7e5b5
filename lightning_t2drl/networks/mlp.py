"""The published networks: multilayer perceptrons over the flat state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.features import FlatFeatures, split_state
from lightning_t2drl.system.scenario import Scenario

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": nn.Mish, "silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


def activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise UserError(f"activation: {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


@dataclass
class MLPConfig:
    """Shape of an MLP; see `configs/allocator/d3pg.yaml`."""

    _target_: str = ""
    hidden: int = 256
    layers: int = 3
    activation: str = "mish"


def after_first_layer(config: MLPConfig) -> nn.Sequential:
    """The activation of the first hidden layer, then (linear, activation) for each further one."""
    layers: list[nn.Module] = [activation(config.activation)]
    for _ in range(config.layers - 1):
        layers += [nn.Linear(config.hidden, config.hidden), activation(config.activation)]
    return nn.Sequential(*layers)


class MLPTrunk(nn.Module):
    """Denoiser eps_theta(x, i, s), or a plain actor where `steps` is 0; three hidden layers and tanh as published.

    The first layer's weights are split: what the state contributes is computed once per chain (`context`), and the
    step index contributes a learned vector, so a denoising step multiplies only the action.
    """

    Config = MLPConfig
    Features = FlatFeatures

    def __init__(self, scenario: Scenario, steps: int, config: MLPConfig) -> None:
        super().__init__()
        self.users = scenario.users
        inputs = FlatFeatures(scenario).inputs
        self.from_state = nn.Linear(inputs, config.hidden)
        self.from_action = nn.Linear(2 * self.users, config.hidden, bias=False) if steps else None
        self.from_step = nn.Parameter(0.1 * torch.randn(max(steps, 1), config.hidden)) if steps else None
        self.body = after_first_layer(config)
        self.out = nn.Linear(config.hidden, 2 * self.users)

    def context(self, state: Tensor) -> Tensor:
        """The state's share of the first layer: [*, hidden] from [*, S]."""
        return self.from_state(split_state(state, self.users)[-1])

    def forward(self, context: Tensor, x: Tensor | None, step: int) -> Tensor:
        """Tanh output [*, U, 2]; `x` [*, U, 2] is the noisy action, `step` counts from 0."""
        if x is not None and self.from_action is not None and self.from_step is not None:
            context = context + self.from_action(x.flatten(-2)) + self.from_step[step]
        return self.out(self.body(context)).tanh().unflatten(-1, (self.users, 2))


class MLPCritic(nn.Module):
    """Q(s, a) over the flat state and the executed shares; one output."""

    Config = MLPConfig
    per_user = False

    def __init__(self, scenario: Scenario, config: MLPConfig) -> None:
        super().__init__()
        self.users = scenario.users
        inputs = FlatFeatures(scenario).inputs + 2 * self.users
        self.first = nn.Linear(inputs, config.hidden)
        self.body = after_first_layer(config)
        self.out = nn.Linear(config.hidden, 1)

    def forward(self, state: Tensor, shares: Tensor) -> Tensor:
        """[*, 1] from states [*, S] and shares [*, U, 2]; shares are scaled to mean 1 for an equal split."""
        inputs = split_state(state, self.users)[-1]
        return self.out(self.body(self.first(torch.cat((inputs, shares.flatten(-2) * self.users), -1))))
