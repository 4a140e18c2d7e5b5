"""Permutation-equivariant networks: users are a set, and the same weights serve any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_t2drl.accel.kernels import linear
from lightning_t2drl.networks.activations import activation
from lightning_t2drl.networks.features import UserFeatures, network_inputs
from lightning_t2drl.networks.mlp import per_step
from lightning_t2drl.system.scenario import Scenario


@dataclass
class SetConfig:
    """Shape of a set network; see `configs/allocator/d3pg_set.yaml`."""

    _target_: str = ""
    hidden: int = 64
    rounds: int = 2
    activation: str = "relu"


def user_table(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [*, U, F], attachment weights [*, U, 1] that average over a cell's users, and `full_share` [*, U]."""
    users = state.shape[-1] // (3 + UserFeatures.PER_USER)
    attached, full_share = state[..., users : 2 * users], state[..., 2 * users : 3 * users]
    weight = (attached / attached.sum(-1, keepdim=True).clamp_min(1.0)).unsqueeze(-1)
    return network_inputs(state, users).unflatten(-1, (users, UserFeatures.PER_USER)), weight, full_share


class Round(nn.Module):
    """h_u <- act(W h_u + V pool(h)): each user hears the mean over the cell's users."""

    def __init__(self, width: int, activation_name: str) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)
        self.activation = activation(activation_name)

    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        pooled = (h * weight).sum(-2, keepdim=True)
        return self.activation(self.own(h) + self.others(pooled))


class SetContext(NamedTuple):
    """What every denoising step of a chain uses alike."""

    hidden: tuple[Tensor, ...]  # the users as they know of each other, with the step, [n, U, hidden] per step
    weight: Tensor  # averages over a cell's users, [n, U, 1]
    from_action: Tensor | None  # weights of the noisy action of the user and of the mean, [hidden, 4]
    last: Tensor  # likewise of the last round, [hidden, 2 hidden]
    bias: Tensor  # of the last round, [hidden]


def with_mean(h: Tensor, weight: Tensor) -> Tensor:
    """Each user's row beside the mean over the cell's users: [n, U, 2 H] from [n, U, H]."""
    return torch.cat((h, (h * weight).sum(-2, keepdim=True).expand_as(h)), -1)


class SetTrunk(nn.Module):
    """Denoiser or plain actor over a set of users.

    `context` embeds the users and lets them hear of each other, once per chain; each denoising step then adds the
    noisy action of the user and of the others, and one more round.
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
        self.activation = activation(config.activation)
        self.last = Round(width, config.activation)
        self.out = nn.Linear(width, 2)
        nn.init.uniform_(self.out.weight, -1e-2, 1e-2)

    def context(self, state: Tensor) -> SetContext:
        """What a chain needs for states [n, S] and only has to look up once."""
        features, weight, _ = user_table(state)
        h = self.activation(self.embed(features))
        for layer in self.rounds:
            h = layer(h, weight)
        from_action = None
        if self.from_action is not None and self.from_others is not None:
            from_action = torch.cat((self.from_action.weight, self.from_others.weight), -1)
        last = torch.cat((self.last.own.weight, self.last.others.weight), -1)
        return SetContext(per_step(self.from_context(h), self.from_step), weight, from_action, last, self.last.own.bias)

    def forward(self, context: SetContext, x: Tensor | None, step: int) -> Tensor:
        """Tanh output [n, U, 2]; `x` [n, U, 2] is the noisy action, `step` counts from 0."""
        hidden, weight, from_action, last, bias = context
        h = hidden[step]
        if x is not None and from_action is not None:
            h = h + linear(with_mean(x, weight), from_action)
        h = self.activation(linear(with_mean(self.activation(h), weight), last, bias))
        return self.out(h).tanh()


class SetCritic(nn.Module):
    """Per-user values Q_u(s, a); the cell's value is their mean, so its gradient tells each user's own share."""

    Config = SetConfig
    per_user = True

    def __init__(self, scenario: Scenario, config: SetConfig) -> None:
        super().__init__()
        width = config.hidden
        self.activation = activation(config.activation)
        self.embed = nn.Linear(UserFeatures.PER_USER + 4, width)
        self.rounds = nn.ModuleList([Round(width, config.activation) for _ in range(config.rounds)])
        self.out = nn.Linear(width, 1)

    def forward(self, state: Tensor, shares: Tensor) -> Tensor:
        """[*, U] from states [*, S] and shares [*, U, 2].

        Shares enter on a log scale, where access delay a_u / b_u is a sum, and in units of the steps for full quality.
        """
        features, weight, full_share = user_table(state)
        bandwidth, steps = shares.unbind(-1)
        log_share = bandwidth.clamp_min(1e-4).log()
        log_delay = (UserFeatures.log_link(features) - log_share).clamp(-6.0, 2.0)
        action = torch.stack((0.5 * (log_share + 2), log_delay, log_delay.exp().clamp_max(2.0), steps / full_share), -1)
        h = self.activation(self.embed(torch.cat((features, action), -1)))
        for layer in self.rounds:
            h = layer(h, weight)
        return self.out(h).squeeze(-1)
