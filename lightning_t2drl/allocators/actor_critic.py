"""Deterministic policy gradient over shares: what DDPG and D3PG have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_t2drl.accel.kernels import fast_products
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.loop.optimizers import adam
from lightning_t2drl.networks.actors.diffusion import DiffusionActor, DirectActor
from lightning_t2drl.networks.features import amending_facts
from lightning_t2drl.networks.heads import HEADS, Head
from lightning_t2drl.policy import LEARNING_RATE_SCHEDULES, Metrics, Optimise
from lightning_t2drl.registry import build, locate
from lightning_t2drl.system import amend_allocation
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean


@dataclass
class ActorCriticConfig:
    """Keys of `configs/allocator/{ddpg,d3pg}*.yaml` that both algorithms read."""

    _target_: str = ""
    actor: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.mlp.MLPTrunk"})
    critic: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.mlp.MLPCritic"})
    critics: int = 1
    head: str = "tanh"
    head_scale: float = 3.0
    step_scale: float = 60.0
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    learning_rate_schedule: str = "constant"
    discount: float = 0.99
    target_rate: float = 0.005
    exploration_noise: float = 0.2
    exploration_noise_end: float = 0.05


class ActorCriticAllocator(Allocator):
    """Actor, critics and their targets; subclasses build the actor.

    Critics see the shares that were executed, so that raw actions which mean the same allocation are the same to
    them, and the policy gradient runs through the actor's head and the amender. Targets are only kept where the
    discount makes them matter: allocations of one slot do not change the next, so a discount of 0 is exact.
    """

    Config: ClassVar[type] = ActorCriticConfig
    learns = True
    config: ActorCriticConfig

    def __init__(self, scenario: Scenario, config: ActorCriticConfig) -> None:
        super().__init__(scenario, config)
        self._check()
        self.features = locate(config.actor["_target_"], "allocator.actor._target_").Features(scenario)
        self.head: Head = HEADS[config.head](config.head_scale, config.step_scale)
        self.actor = self.build_actor()
        self.critics = self._build_critics()
        self.per_user = bool(self.critics[0].per_user)
        self.bootstraps = config.discount > 0
        if self.bootstraps:
            self.target_actor = self.build_actor().requires_grad_(False)
            self.target_critics = self._build_critics().requires_grad_(False)
            self.target_actor.load_state_dict(self.actor.state_dict())
            self.target_critics.load_state_dict(self.critics.state_dict())
            # Listed once: walking through the modules in every update takes longer than the update of the targets.
            self._followers, self._followed = (list(tensors) for tensors in zip(*self.followers(), strict=True))

    def _check(self) -> None:
        c = self.config
        one_of("allocator", c, head=tuple(HEADS), learning_rate_schedule=LEARNING_RATE_SCHEDULES)
        within("allocator", c, critics=(1, 10), discount=(0, 1), target_rate=(0, 1))
        within(
            "allocator",
            c,
            exploration_noise=(0, 10),
            exploration_noise_end=(0, 10),
            head_scale=(0, 100),
            step_scale=(0, 1000),
        )
        within("allocator", c, actor_learning_rate=(0, 1), critic_learning_rate=(0, 1))

    def build_actor(self) -> DiffusionActor | DirectActor:
        raise NotImplementedError

    def _build_critics(self) -> nn.ModuleList:
        return nn.ModuleList(
            build(self.config.critic, self.scenario, key="allocator.critic") for _ in range(self.config.critics)
        )

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        return {
            "critic": adam(self.critics.parameters(), self.config.critic_learning_rate, self.fused_optimizers),
            "actor": adam(self.actor.parameters(), self.config.actor_learning_rate, self.fused_optimizers),
        }

    @property
    def exploration_noise(self) -> float:
        """Standard deviation of the exploration, falling linearly over the run."""
        start, end = self.config.exploration_noise, self.config.exploration_noise_end
        return start + (end - start) * min(self.progress, 1.0)

    # -- acting

    def state(self, observation: TensorDict) -> Tensor:
        return self.features(self.scenario, observation)

    def draw_noise(self, batch: tuple[int, ...]) -> Tensor:
        """Standard normal noise for one chain per state: [I, *batch, U, 2]."""
        shape = (self.actor.steps, *batch, self.scenario.users, 2)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def shares(self, actor: nn.Module, state: Tensor, noise: Tensor) -> Tensor:
        """Feasible shares [*, U, 2] of an actor."""
        return self.to_shares(state, actor(state, noise).float())

    def to_shares(self, state: Tensor, output: Tensor) -> Tensor:
        """Feasible shares [*, U, 2] from an actor's output [*, U, 2]."""
        hit, attached, full_share = amending_facts(state, self.scenario.users)
        return amend_allocation(self.head(self.bounded(output), hit, attached, full_share), hit, attached)

    def to_raw(self, state: Tensor, output: Tensor) -> Tensor:
        """The raw allocation [*, U, 2] that an actor's output [*, U, 2] means."""
        return self.head(self.bounded(output), *amending_facts(state, self.scenario.users))

    def bounded(self, output: Tensor) -> Tensor:
        """An actor's output within [-1, 1], as heads take it."""
        return output

    def value(self, critics: nn.ModuleList, state: Tensor, shares: Tensor) -> Tensor:
        """Lower envelope of the critics' values, [*, 1] or per user [*, U]."""
        values = self.values(critics, state, shares)
        return values if len(critics) == 1 else values.amin(0)

    @staticmethod
    def values(critics: nn.ModuleList, state: Tensor, shares: Tensor) -> Tensor:
        """Each critic's values, [critics, *, 1 or U], or just [*, 1 or U] where there is one; in float32."""
        values = [critic(state, shares).float() for critic in critics]
        return values[0] if len(values) == 1 else torch.stack(values)

    @torch.no_grad()
    def act(self, state: Tensor, explore: bool = False) -> Tensor:
        batch = tuple(state.shape[:-1])
        if not explore:
            return self.to_raw(state, self.actor(state, self.draw_noise(batch)).float())
        shape = (*batch, self.scenario.users, 2)
        spread = torch.randn(shape, generator=self.generator, device=state.device) * self.exploration_noise
        return self.to_raw(state, self.actor(state, self.draw_noise(batch)).float() + spread)

    # -- learning

    def transition_fields(self) -> dict[str, int]:
        users = self.scenario.users
        fields = {"state": self.features.width, "shares": 2 * users, "reward": users if self.per_user else 1}
        return fields | ({"next_state": self.features.width} if self.bootstraps else {})

    def transition(self, state: Tensor, shares: Tensor, served: TensorDict, next_state: Tensor) -> dict[str, Tensor]:
        _, attached, _ = amending_facts(state, self.scenario.users)
        utility = served["utility"]
        fields = {
            "state": state,
            "shares": shares.flatten(-2),
            "reward": utility if self.per_user else cell_mean(utility, attached).unsqueeze(-1),
        }
        return fields | ({"next_state": next_state} if self.bootstraps else {})

    def update(self, batch: dict[str, Tensor], optimise: Optimise) -> Metrics:
        with fast_products(len(batch["state"])):
            return self._update(batch, optimise)

    def _update(self, batch: dict[str, Tensor], optimise: Optimise) -> Metrics:
        state, shares = batch["state"], batch["shares"].unflatten(-1, (-1, 2))
        rows = (len(state),)
        target = batch["reward"]
        if self.bootstraps:
            target = self.target(target, batch["next_state"], self.draw_noise(rows))
        critic_loss = self.critic_loss(state, shares, target)
        optimise("critic", critic_loss)
        actor_loss = self.actor_loss(state, self.draw_noise(rows))
        optimise("actor", actor_loss)
        self.update_targets()
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

    @torch.no_grad()
    def target(self, reward: Tensor, next_state: Tensor, noise: Tensor) -> Tensor:
        """Y = r + gamma Q'(s', mu'(s')), [b, 1 or U]."""
        shares = self.shares(self.target_actor, next_state, noise)
        return reward + self.config.discount * self.value(self.target_critics, next_state, shares)

    def critic_loss(self, state: Tensor, shares: Tensor, target: Tensor) -> Tensor:
        """Mean squared TD error, summed over the critics."""
        errors = self.values(self.critics, state, shares) - target
        return errors.square().mean() * len(self.critics)

    def actor_loss(self, state: Tensor, noise: Tensor) -> Tensor:
        """The negated value of what the actor does: its gradient is the deterministic policy gradient."""
        return -self.value(self.critics, state, self.shares(self.actor, state, noise)).mean()

    def followers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each target's parameters beside those they follow; nothing where there are no targets."""
        if self.bootstraps:
            yield from zip(self.target_actor.parameters(), self.actor.parameters(), strict=True)
            yield from zip(self.target_critics.parameters(), self.critics.parameters(), strict=True)

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak update of the targets, all tensors in one call."""
        if self.bootstraps:
            torch._foreach_lerp_(self._followers, self._followed, self.config.target_rate)
