"""Permutation-equivariant networks: users are a set, and the same weights serve any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_t2drl.checks import one_of, within
from lightning_t2drl.networks.activations import ACTIVATIONS
from lightning_t2drl.networks.features import State, UserFeatures
from lightning_t2drl.networks.mlp import per_step
from lightning_t2drl.system.scenario import Scenario


@dataclass
class SetConfig:
    """Keys of `configs/allocator/{actor,critic}/sets.yaml`."""

    _target_: str = ""
    hidden: int = 64
    rounds: int = 1
    activation: str = "relu"

    def __post_init__(self) -> None:
        within("", self, hidden=(1, 1e5), rounds=(0, 100))
        one_of("", self, activation=ACTIVATIONS)


def mean_weight(state: State) -> Tensor:
    """Weights [*, U, 1] that average over the users attached to the cell."""
    attached = state["attached"].to(state["features"].dtype)
    return (attached / attached.sum(-1, keepdim=True).clamp_min(1.0)).unsqueeze(-1)


class Round(nn.Module):
    """h_u <- act(W h_u + V mean_v(h_v)): each user's row takes in the mean over the cell's users."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        pooled = (h * weight).sum(-2, keepdim=True)
        return self.activation(self.own(h) + self.others(pooled))


class SetContext(NamedTuple):
    """What all diffusion steps of a chain share."""

    hidden: tuple[Tensor, ...]  # the users' rows after their rounds, with the step, [n, U, hidden] per step
    weight: Tensor  # averages over a cell's users, [n, U, 1]
    from_action: Tensor | None  # weights of the noisy action of the user and of the mean, [hidden, 4]
    last: Tensor  # likewise of the last round, [hidden, 2 hidden]


def with_mean(h: Tensor, weight: Tensor) -> Tensor:
    """Each user's row beside the mean over the cell's users: [n, U, 2 H] from [n, U, H]."""
    return torch.cat((h, (h * weight).sum(-2, keepdim=True).expand_as(h)), -1)


class SetTrunk(nn.Module):
    """Denoiser or plain actor over a set of users.

    `context` embeds the users and mixes their rows, once per chain; each diffusion step then adds the noisy action of
    the user and of the others, and one more round.
    """

    Config = SetConfig
    Features = UserFeatures

    def __init__(self, scenario: Scenario, steps: int, config: SetConfig) -> None:
        super().__init__()
        width = config.hidden
        self.embed = nn.Linear(UserFeatures.PER_USER, width)
        self.rounds = nn.ModuleList([Round(width, config.activation) for _ in range(config.rounds)])
        self.from_context = nn.Linear(width, width)
        self.from_action = nn.Linear(2, width, bias=False) if steps else None
        self.from_others = nn.Linear(2, width, bias=False) if steps else None
        self.from_step = nn.Parameter(0.1 * torch.randn(steps, width)) if steps else None
        self.activation = ACTIVATIONS[config.activation]
        self.last = Round(width, config.activation)
        self.out = nn.Linear(width, 2)
        nn.init.uniform_(self.out.weight, -1e-2, 1e-2)

    def context(self, state: State) -> SetContext:
        weight = mean_weight(state)
        h = self.activation(self.embed(state["features"]))
        for layer in self.rounds:
            h = layer(h, weight)
        from_action = None
        if self.from_action is not None and self.from_others is not None:
            from_action = torch.cat((self.from_action.weight, self.from_others.weight), -1)
        last = torch.cat((self.last.own.weight, self.last.others.weight), -1)
        return SetContext(per_step(self.from_context(h), self.from_step), weight, from_action, last)

    def forward(self, context: SetContext, x: Tensor | None, step: int) -> Tensor:
        """Output [n, U, 2] before any squashing; `x` [n, U, 2] is the noisy action, `step` counts from 0."""
        h = context.hidden[step]
        if x is not None and context.from_action is not None:
            h = h + linear(with_mean(x, context.weight), context.from_action)
        h = linear(with_mean(self.activation(h), context.weight), context.last, self.last.own.bias)
        return self.out(self.activation(h))


class SetCritic(nn.Module):
    """Per-user values Q_u(s, a); the cell's value is their mean, so its gradient tells each user's own share."""

    Config = SetConfig
    Features = UserFeatures
    per_user = True

    def __init__(self, scenario: Scenario, config: SetConfig) -> None:
        super().__init__()
        width = config.hidden
        self.activation = ACTIVATIONS[config.activation]
        self.embed = nn.Linear(UserFeatures.PER_USER + 4, width)
        self.rounds = nn.ModuleList([Round(width, config.activation) for _ in range(config.rounds)])
        self.out = nn.Linear(width, 1)

    def forward(self, state: State, shares: Tensor) -> Tensor:
        """[*, U] from a state and shares [*, U, 2].

        Shares enter on a log scale, where access delay a_u / b_u is a sum, and in units of the steps for full quality.
        """
        features, weight = state["features"], mean_weight(state)
        bandwidth, steps = shares.unbind(-1)
        log_share = bandwidth.clamp_min(1e-4).log()
        log_delay = (UserFeatures.log_link(features) - log_share).clamp(-6.0, 2.0)
        relative = steps / state["full_share"]
        action = torch.stack((0.5 * (log_share + 2), log_delay, log_delay.exp().clamp_max(2.0), relative), -1)
        h = self.activation(self.embed(torch.cat((features, action), -1)))
        for layer in self.rounds:
            h = layer(h, weight)
        return self.out(h).squeeze(-1)
