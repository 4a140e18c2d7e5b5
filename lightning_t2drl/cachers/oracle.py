"""The cache of an operator who knows the true popularity state and allocates exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.checks import within
from lightning_t2drl.system.bounds import OracleCaches, oracle_caches


@dataclass
class OracleConfig:
    """Keys of `configs/cacher/oracle.yaml`."""

    _target_: str = ""
    slots: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        within("", self, slots=(1, 1e6), seed=(0, 2**63 - 1))


class OracleCacher(Cacher):
    """The cache of highest expected utility in the true popularity state, see `oracle_caches`."""

    Config = OracleConfig
    config: OracleConfig

    @cached_property
    def caches(self) -> OracleCaches:
        """Found when first needed: it takes some seconds."""
        return oracle_caches(self.scenario, self.config.slots, self.config.seed)

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        return self.caches.of(observation["popularity_state"])
