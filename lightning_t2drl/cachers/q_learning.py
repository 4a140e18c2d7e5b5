"""Double Q-learning over caches: what the DDQN and the knapsack cacher have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.loop.optimizers import adam
from lightning_t2drl.policy import LEARNING_RATE_SCHEDULES, Metrics, Optimise
from lightning_t2drl.system.caching import fill_in_order
from lightning_t2drl.system.scenario import Scenario


@dataclass
class QLearningConfig:
    """Keys of `configs/cacher/{ddqn,knapsack}.yaml` that both cachers read."""

    _target_: str = ""
    observe_cache: bool = False
    learning_rate: float = 1e-3
    learning_rate_schedule: str = "constant"
    discount: float = 0.9
    target_every: int = 100
    epsilon: float = 1.0
    epsilon_end: float = 0.02
    epsilon_fraction: float = 0.5


class QLearningCacher(Cacher):
    """A Q-network, its target and an epsilon schedule; subclasses say what is on offer and which of it is best.

    The network has `value(state [*, S], cache [*, M]) -> [*]`.
    """

    Config: ClassVar[type] = QLearningConfig
    learns = True
    config: QLearningConfig

    def __init__(self, scenario: Scenario, config: QLearningConfig) -> None:
        super().__init__(scenario, config)
        within("cacher", config, learning_rate=(0, 1), discount=(0, 1), target_every=(1, 1e9))
        one_of("cacher", config, learning_rate_schedule=LEARNING_RATE_SCHEDULES)
        within("cacher", config, epsilon=(0, 1), epsilon_end=(0, 1), epsilon_fraction=(0, 1))
        self.updates = 0
        self.network = self.build_network()
        self.target_network = self.build_network().requires_grad_(False)
        self.target_network.load_state_dict(self.network.state_dict())

    def build_network(self) -> nn.Module:
        raise NotImplementedError

    def best(self, network: nn.Module, state: Tensor) -> Tensor:
        """The cache of highest value, bool [*, M], for states [*, S]."""
        raise NotImplementedError

    def random_cache(self, batch: tuple[int, ...]) -> Tensor:
        """An exploratory cache, bool [*batch, M]: models in random order while they fit."""
        return fill_in_order(self.scenario, self._uniform(*batch, self.scenario.models))

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        return {"q": adam(self.network.parameters(), self.config.learning_rate, self.fused_optimizers)}

    @property
    def epsilon(self) -> float:
        """Share of random decisions: falls linearly over `epsilon_fraction` of the run, then stays."""
        c = self.config
        done = min(self.progress / c.epsilon_fraction, 1.0) if c.epsilon_fraction else 1.0
        return c.epsilon + (c.epsilon_end - c.epsilon) * done

    @property
    def state_width(self) -> int:
        return self.scenario.popularity_width + (self.scenario.models if self.config.observe_cache else 0)

    def state(self, observation: TensorDict) -> Tensor:
        if not self.config.observe_cache:
            return observation["popularity"]
        return torch.cat((observation["popularity"], observation["cache"].float()), -1)

    @torch.no_grad()
    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        greedy = self.best(self.network, self.state(observation))
        if not explore:
            return greedy
        batch = tuple(observation.batch_size)
        return torch.where(self._uniform(*batch, 1) < self.epsilon, self.random_cache(batch), greedy)

    def update(self, batch: dict[str, Tensor], optimise: Optimise) -> Metrics:
        loss = self.loss(batch["state"], batch["cache"] > 0.5, self.target(batch))
        optimise("q", loss)
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.target_network.load_state_dict(self.network.state_dict())
        return {"q_loss": loss.detach()}

    @torch.no_grad()
    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """Double-Q target y = r + gamma Q'(s', argmax_c Q(s', c)), [b]."""
        reward = batch["reward"].squeeze(-1)
        if not self.config.discount:
            return reward
        following = batch["next_state"]
        value = self.target_network.value(following, self.best(self.network, following))  # type: ignore[operator]
        return reward + self.config.discount * value.float()

    def loss(self, state: Tensor, cache: Tensor, target: Tensor) -> Tensor:
        """Mean squared TD error."""
        return (self.network.value(state, cache).float() - target).square().mean()  # type: ignore[operator]

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"updates": self.updates}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.updates = state["updates"]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)
