"""The published networks: multilayer perceptrons over the flat state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_t2drl.accel.kernels import addmm, linear
from lightning_t2drl.networks.activations import activation
from lightning_t2drl.networks.features import FlatFeatures, network_inputs
from lightning_t2drl.networks.mlp_chain import MLPChain
from lightning_t2drl.system.scenario import Scenario


@dataclass
class MLPConfig:
    """Shape of an MLP; see `configs/allocator/d3pg.yaml`."""

    _target_: str = ""
    hidden: int = 256
    layers: int = 3
    activation: str = "relu"


class Tail(nn.Module):
    """What follows a first hidden layer: its activation, the further hidden layers, and a linear output."""

    def __init__(self, hidden: int, layers: int, outputs: int, activation_name: str) -> None:
        super().__init__()
        self.activation_name = activation_name
        self.activation = activation(activation_name)
        widths = [hidden] * layers + [outputs]
        self.layers = nn.ModuleList(nn.Linear(inputs, outs) for inputs, outs in pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        """[*, outputs] from [*, hidden]."""
        for layer in self.layers:
            hidden = linear(self.activation(hidden), layer.weight, layer.bias)  # type: ignore[arg-type]
        return hidden


def per_step(hidden: Tensor, from_step: Tensor | None) -> tuple[Tensor, ...]:
    """`hidden` [*, H] plus each row of `from_step` [I, H]; just `hidden` where there is no chain."""
    return (hidden,) if from_step is None else tuple(hidden + row for row in from_step.unbind())


class MLPContext(NamedTuple):
    """What every denoising step of a chain uses alike."""

    hidden: tuple[Tensor, ...]  # what state and step contribute to the first layer, [n, hidden] per step
    from_action: Tensor | None  # weight of the noisy action there, [2 U, hidden]
    layers: list[tuple[Tensor, Tensor]]  # bias and transposed weight of each later layer


class MLPTrunk(nn.Module):
    """Denoiser eps_theta(x, i, s), or a plain actor where `steps` is 0; three hidden layers and tanh as published.

    The first layer's weights are split: what the state and the step index (a learned vector) contribute is computed
    once per chain (`context`), so that a denoising step multiplies only the action.
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
        self.tail = Tail(config.hidden, config.layers, 2 * self.users, config.activation)

    def context(self, state: Tensor) -> MLPContext:
        """What a chain needs for states [n, S] and only has to look up once."""
        hidden = per_step(self.from_state(network_inputs(state, self.users)), self.from_step)
        from_action = None if self.from_action is None else self.from_action.weight.t()
        return MLPContext(hidden, from_action, [(layer.bias, layer.weight.t()) for layer in self.tail.layers])  # type: ignore[misc, operator]

    def forward(self, context: MLPContext, x: Tensor | None, step: int) -> Tensor:
        """Tanh output [n, U, 2]; `x` [n, U, 2] is the noisy action, `step` counts from 0."""
        hidden = context.hidden[step]
        if x is not None and context.from_action is not None:
            hidden = addmm(hidden, x.flatten(1), context.from_action)
        activate = self.tail.activation
        for bias, weight in context.layers:
            hidden = addmm(bias, activate(hidden), weight)
        return hidden.tanh().view(-1, self.users, 2)

    def chain(
        self, state: Tensor, x: Tensor, added: Sequence[Tensor], coefficients: list[tuple[float, float]]
    ) -> Tensor:
        """x_0 [n, U, 2] from x_I, see `reverse_chain`; for learning."""
        assert self.from_step is not None and self.from_action is not None
        hidden = self.from_state(network_inputs(state, self.users)) + self.from_step.unsqueeze(1)
        layers = [p for layer in self.tail.layers for p in (layer.weight, layer.bias)]
        flat, name = [z.flatten(1) for z in added], self.tail.activation_name
        out = MLPChain.apply(hidden, x.flatten(1), flat, coefficients, name, self.from_action.weight, *layers)
        return out.view(-1, self.users, 2)


class MLPCritic(nn.Module):
    """Q(s, a) over the flat state and the executed shares; one output."""

    Config = MLPConfig
    per_user = False

    def __init__(self, scenario: Scenario, config: MLPConfig) -> None:
        super().__init__()
        self.users = scenario.users
        inputs = FlatFeatures(scenario).inputs + 2 * self.users
        self.first = nn.Linear(inputs, config.hidden)
        self.tail = Tail(config.hidden, config.layers, 1, config.activation)

    def forward(self, state: Tensor, shares: Tensor) -> Tensor:
        """[*, 1] from states [*, S] and shares [*, U, 2]; shares are scaled to mean 1 for an equal split."""
        inputs = network_inputs(state, self.users)
        return self.tail(self.first(torch.cat((inputs, shares.flatten(-2) * self.users), -1)))
