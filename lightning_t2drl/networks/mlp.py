"""Flat networks, as published: multilayer perceptrons over the whole state and a fixed number of users."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_t2drl.checks import one_of, within
from lightning_t2drl.networks.activations import ACTIVATIONS
from lightning_t2drl.networks.features import FlatFeatures, State
from lightning_t2drl.system.scenario import Scenario


@dataclass
class MLPConfig:
    """Keys of `configs/allocator/actor/mlp.yaml`."""

    _target_: str = ""
    hidden: int = 256
    layers: int = 3
    activation: str = "relu"
    hits: bool = False

    def __post_init__(self) -> None:
        within("", self, hidden=(1, 1e5), layers=(1, 100))
        one_of("", self, activation=ACTIVATIONS)


@dataclass
class MLPCriticConfig(MLPConfig):
    """Keys of `configs/allocator/critic/mlp.yaml`."""

    per_user: bool = False
    log_shares: bool = False


class Tail(nn.Module):
    """What follows a first hidden layer: its activation, the further hidden layers, and a linear output."""

    def __init__(self, hidden: int, layers: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        widths = [hidden] * layers + [outputs]
        self.layers = nn.ModuleList(nn.Linear(inputs, outs) for inputs, outs in pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        """[*, outputs] from [*, hidden]."""
        for layer in self.layers:
            hidden = layer(self.activation(hidden))
        return hidden


def per_step(hidden: Tensor, from_step: Tensor | None) -> tuple[Tensor, ...]:
    """`hidden` [*, H] plus each row of `from_step` [I, H]; just `hidden` where there is no chain."""
    return (hidden,) if from_step is None else tuple(hidden + row for row in from_step.unbind())


def seen(state: State, hits: bool) -> Tensor:
    """What an MLP reads of a state, [*, S] or, with `hits`, [*, S + 3 U].

    A hit follows from request and cache, but only as a sum of products, which an MLP learns slowly.
    """
    features = state["features"]
    if not hits:
        return features
    return torch.cat((*(state[key].to(features.dtype) for key in ("hit", "attached", "full_share")), features), -1)


def seen_width(scenario: Scenario, hits: bool) -> int:
    return FlatFeatures(scenario).width + (3 * scenario.users if hits else 0)


class MLPContext(NamedTuple):
    """What all diffusion steps of a chain share."""

    hidden: tuple[Tensor, ...]  # what state and step contribute to the first layer, [n, hidden] per step


class MLPTrunk(nn.Module):
    """Denoiser eps_theta(x, i, s), or a plain actor where `steps` is 0; three hidden layers and tanh as published.

    The first layer's weights are split: what the state and the step index (a learned vector) contribute is computed
    once per chain (`context`), so that a diffusion step multiplies only the action.
    """

    Config = MLPConfig
    Features = FlatFeatures

    def __init__(self, scenario: Scenario, steps: int, config: MLPConfig) -> None:
        super().__init__()
        self.users = scenario.users
        self.hits = config.hits
        self.from_state = nn.Linear(seen_width(scenario, config.hits), config.hidden)
        self.from_action = nn.Linear(2 * self.users, config.hidden, bias=False) if steps else None
        self.from_step = nn.Parameter(0.1 * torch.randn(steps, config.hidden)) if steps else None
        self.tail = Tail(config.hidden, config.layers, 2 * self.users, config.activation)

    def context(self, state: State) -> MLPContext:
        return MLPContext(per_step(self.from_state(seen(state, self.hits)), self.from_step))

    def forward(self, context: MLPContext, x: Tensor | None, step: int) -> Tensor:
        """Output [n, U, 2] before any squashing; `x` [n, U, 2] is the noisy action, `step` counts from 0."""
        hidden = context.hidden[step]
        if x is not None and self.from_action is not None:
            hidden = hidden + self.from_action(x.flatten(1))
        return self.tail(hidden).view(-1, self.users, 2)


class MLPCritic(nn.Module):
    """Q(s, a) over the flat state and the executed shares; one output, or one per user."""

    Config = MLPCriticConfig
    Features = FlatFeatures

    def __init__(self, scenario: Scenario, config: MLPCriticConfig) -> None:
        super().__init__()
        self.users, self.hits = scenario.users, config.hits
        self.per_user, self.log_shares = config.per_user, config.log_shares
        inputs = seen_width(scenario, config.hits) + 2 * self.users * (2 if config.log_shares else 1)
        self.first = nn.Linear(inputs, config.hidden)
        outputs = self.users if config.per_user else 1
        self.tail = Tail(config.hidden, config.layers, outputs, config.activation)

    def forward(self, state: State, shares: Tensor) -> Tensor:
        """[*, 1 or U] from a state and shares [*, U, 2], which are scaled to mean 1 for an equal split."""
        scaled = shares.flatten(-2) * self.users
        inputs = [seen(state, self.hits), scaled]
        if self.log_shares:
            inputs.append(scaled.clamp_min(1e-3 * self.users).log())
        return self.tail(self.first(torch.cat(inputs, -1)))
