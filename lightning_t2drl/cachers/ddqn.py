"""The double DQN that picks a frame's cache (docs/concepts/learning.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_t2drl.cachers.q_learning import QLearningCacher, QLearningConfig
from lightning_t2drl.checks import within
from lightning_t2drl.errors import UserError
from lightning_t2drl.system.caching import all_caches, amend_cache, fits
from lightning_t2drl.system.scenario import Scenario

MAX_MODELS = 16  # 2^M values are compared; with more models use the knapsack cacher


@dataclass
class DDQNConfig(QLearningConfig):
    """Keys of `configs/cacher/ddqn.yaml`."""

    network: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.q.CacheQNetwork"})
    infeasible_penalty: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.infeasible_penalty is not None:
            within("", self, infeasible_penalty=(0, 1e6))


class DDQNCacher(QLearningCacher):
    """Double DQN over subsets of models.

    A subset that exceeds the storage is never offered. With `infeasible_penalty`, as published, all are offered: one
    that does not fit is cut down by the amender, and the penalty is taken from the frame's reward.
    """

    Config = DDQNConfig
    config: DDQNConfig
    subsets: Tensor
    loads: Tensor

    def __init__(self, scenario: Scenario, config: DDQNConfig) -> None:
        if scenario.models > MAX_MODELS:
            raise UserError(
                f"cacher: ddqn compares all 2^M caches, too many for M = {scenario.models}; use cacher=knapsack"
            )
        super().__init__(scenario, config)

    def build_network(self) -> nn.Module:
        subsets, feasible = all_caches(self.scenario)
        offered = subsets[feasible] if self.config.infeasible_penalty is None else subsets
        self.register_buffer("subsets", offered, persistent=False)
        costs = self.scenario.switch_cost * self.scenario.model_storage
        self.register_buffer("loads", (amend_cache(self.scenario, offered) * costs).float(), persistent=False)
        return self.make_network(offered, additive=False)

    def best(self, network: nn.Module, state: Tensor, held: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        values = network(state) if row is None else network(state)[row]
        if held is not None:
            values = values - (~held).to(self.loads) @ self.loads.T
        return self.subsets[values.argmax(-1)]

    def random_cache(self, batch: tuple[int, ...]) -> Tensor:
        """Uniform over what is on offer."""
        index = (self._uniform(*batch) * len(self.subsets)).long()
        return self.subsets[index.clamp_max_(len(self.subsets) - 1)]

    def reward(self, reward: Tensor, cache: Tensor) -> Tensor:
        if self.config.infeasible_penalty is None:
            return reward
        return reward - self.config.infeasible_penalty * ~fits(self.scenario, cache).unsqueeze(-1)
