"""D3PG as it is plainly written: what the project's speed is measured against.

The way of public diffusion policies for edge-generated content (GDMOPT, AGOD): a sinusoidal time embedding through a
small MLP, the noisy action, the embedding and the state concatenated in every step, Mish, schedule coefficients as
tensors gathered by time step, fresh noise in every step, one Adam per network, targets updated parameter by parameter.
It is meant to be fair: one critic and one-step returns as in the project (the public codes carry two critics and
n-step returns, which cost more), transitions in tensors, no copies between NumPy and PyTorch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_t2drl.networks.features import State
from lightning_t2drl.networks.sets import SetTrunk, mean_weight

DISCOUNT, TARGET_RATE = 0.99, 0.005
TIME_WIDTH = 16


class TimeEmbedding(nn.Module):
    """Sines and cosines of the step at geometric frequencies: [b, width] from [b]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, t: Tensor) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / (half - 1)))
        angle = t[:, None] * frequency[None, :]
        return torch.cat((angle.sin(), angle.cos()), -1)


def mlp(inputs: int, hidden: int, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, outputs)
    )


class Denoiser(nn.Module):
    """Predicted noise [b, A] from the noisy action [b, A], the step [b] (from 0) and the state [b, S]."""

    def __init__(self, state_width: int, action_width: int, hidden: int, activation: type[nn.Module] = nn.Mish) -> None:
        super().__init__()
        self.time = nn.Sequential(
            TimeEmbedding(TIME_WIDTH),
            nn.Linear(TIME_WIDTH, 2 * TIME_WIDTH),
            activation(),
            nn.Linear(2 * TIME_WIDTH, TIME_WIDTH),
        )
        self.body = mlp(action_width + TIME_WIDTH + state_width, hidden, action_width, activation)

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.body(torch.cat((x, self.time(t), state), -1)))


class WholeSetDenoiser(nn.Module):
    """The project's set network as a denoiser that is evaluated wholly in every step, as `Denoiser` is."""

    def __init__(self, trunk: SetTrunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor, t: Tensor, state: State) -> Tensor:
        net, weight = self.trunk, mean_weight(state)
        h = net.activation(net.embed(state["features"]))
        for layer in net.rounds:
            h = layer(h, weight)
        x = x.unflatten(-1, (-1, 2))
        others = (x * weight).sum(-2, keepdim=True)
        h = net.from_context(h) + net.from_action(x) + net.from_others(others) + net.from_step[t][:, None, :]
        return net.out(net.last(net.activation(h), weight)).tanh().flatten(1)


def gathered(coefficients: Tensor, t: Tensor) -> Tensor:
    """Coefficients [I] at the steps [b], as a column [b, 1]."""
    return coefficients.gather(-1, t)[:, None]


class Chain(nn.Module):
    """The reverse diffusion chain as an actor: [b, A] from states [b, S]."""

    reciprocal_root_phi: Tensor
    noise_weight: Tensor
    log_variance: Tensor

    def __init__(self, denoiser: nn.Module, action_width: int, betas: Tensor) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.action_width = action_width
        self.steps = len(betas)
        phi = 1.0 - betas
        phibar = torch.cumprod(phi, 0)
        before = torch.cat((torch.ones(1, dtype=betas.dtype), phibar[:-1]))
        variance = betas * (1.0 - before) / (1.0 - phibar)
        for name, values in {
            "reciprocal_root_phi": phi.rsqrt(),
            "noise_weight": betas / (1.0 - phibar).sqrt(),
            "log_variance": variance.clamp_min(1e-20).log(),
        }.items():
            self.register_buffer(name, values.float())

    def posterior_mean(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(x_i - (1 - phi_i) / sqrt(1 - phibar_i) noise) / sqrt(phi_i), [b, A]."""
        return gathered(self.reciprocal_root_phi, t) * (x - gathered(self.noise_weight, t) * noise)

    def forward(self, state: Any) -> Tensor:
        rows = len(state if isinstance(state, Tensor) else state["features"])
        x = torch.randn(rows, self.action_width)
        for step in reversed(range(self.steps)):
            t = torch.full((rows,), step, dtype=torch.long)
            mean = self.posterior_mean(x, t, self.denoiser(x, t, state))
            not_last = (t > 0).float()[:, None]
            x = mean + not_last * (0.5 * gathered(self.log_variance, t)).exp() * torch.randn_like(x)
        return x


class PlainD3PG:
    """Actor, critic, targets and one gradient update.

    Args:
        state_width, action_width: S and A.
        betas: the schedule [I].
        hidden: width of both networks' two hidden layers.
        activation: of all networks.
    """

    def __init__(
        self,
        state_width: int,
        action_width: int,
        betas: Tensor,
        hidden: int = 256,
        activation: type[nn.Module] = nn.Mish,
    ) -> None:
        self.actor = Chain(Denoiser(state_width, action_width, hidden, activation), action_width, betas)
        self.critic = mlp(state_width + action_width, hidden, 1, activation)
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-3)

    @torch.no_grad()
    def act(self, state: Tensor) -> Tensor:
        """Actions [b, A] in [-1, 1] for states [b, S]."""
        return self.actor(state).clamp(-1.0, 1.0)

    def update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One step of the critic, the actor and the targets; `state`, `action`, `reward` [b, 1], `next_state`."""
        state, action = batch["state"], batch["action"]
        with torch.no_grad():
            following = batch["next_state"]
            next_value = self.target_critic(torch.cat((following, self.target_actor(following).clamp(-1.0, 1.0)), -1))
            target = batch["reward"] + DISCOUNT * next_value
        critic_loss = F.mse_loss(self.critic(torch.cat((state, action), -1)), target)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        actor_loss = -self.critic(torch.cat((state, self.actor(state).clamp(-1.0, 1.0)), -1)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        self._follow(self.target_actor, self.actor)
        self._follow(self.target_critic, self.critic)
        return {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item()}

    @staticmethod
    def _follow(target: nn.Module, online: nn.Module) -> None:
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.data.copy_(TARGET_RATE * fast.data + (1.0 - TARGET_RATE) * slow.data)


class TensorReplay:
    """Transitions as one tensor per field, sampled uniformly; the oldest give way."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.fields = {name: values.clone() for name, values in fields.items()}
        self.rows = len(next(iter(fields.values())))
        self.next = 0

    def extend(self, fields: dict[str, Tensor]) -> None:
        index = (torch.arange(len(fields["reward"])) + self.next) % self.rows
        for name, values in fields.items():
            self.fields[name][index] = values
        self.next = (self.next + len(index)) % self.rows

    def sample(self, batch_size: int) -> dict[str, Tensor]:
        index = torch.randint(self.rows, (batch_size,))
        return {name: values[index] for name, values in self.fields.items()}
