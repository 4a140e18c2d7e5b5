"""The double DQN that picks a frame's cache (system model, section 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_t2drl.cachers.q_learning import QLearningCacher, QLearningConfig
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import build
from lightning_t2drl.system.caching import all_caches, fits
from lightning_t2drl.system.scenario import Scenario

MAX_MODELS = 16  # 2^M values are compared; more models want the knapsack cacher


@dataclass
class DDQNConfig(QLearningConfig):
    """Keys of `configs/cacher/ddqn.yaml`."""

    network: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.q.MLPQNetwork"})
    infeasible: str = "mask"
    infeasible_penalty: float = 1.0


class DDQNCacher(QLearningCacher):
    """Double DQN over subsets of models.

    `infeasible: mask` never offers a subset that exceeds the storage. `penalty`, the published variant, offers all; one
    that does not fit is cut down by the amender and costs `infeasible_penalty` of the frame's reward.
    """

    Config = DDQNConfig
    config: DDQNConfig
    subsets: Tensor

    def __init__(self, scenario: Scenario, config: DDQNConfig) -> None:
        if scenario.models > MAX_MODELS:
            raise UserError(
                f"cacher: ddqn compares all 2^M caches, too many for M = {scenario.models}; use cacher=knapsack"
            )
        one_of("cacher", config, infeasible=("mask", "penalty"))
        within("cacher", config, infeasible_penalty=(0, 1e6))
        super().__init__(scenario, config)

    def build_network(self) -> nn.Module:
        subsets, feasible = all_caches(self.scenario)
        offered = subsets if self.config.infeasible == "penalty" else subsets[feasible]
        self.register_buffer("subsets", offered, persistent=False)
        return build(self.config.network, self.state_width, offered, key="cacher.network")

    def best(self, network: nn.Module, state: Tensor) -> Tensor:
        return self.subsets[network(state).argmax(-1)]

    def random_cache(self, batch: tuple[int, ...]) -> Tensor:
        """Uniform over what is on offer."""
        index = (self._uniform(*batch) * len(self.subsets)).long()
        return self.subsets[index.clamp_max_(len(self.subsets) - 1)]

    def reward(self, reward: Tensor, cache: Tensor) -> Tensor:
        if self.config.infeasible == "mask":
            return reward
        return reward - self.config.infeasible_penalty * ~fits(self.scenario, cache).unsqueeze(-1)
