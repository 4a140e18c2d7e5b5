"""The cache of an operator who knows the true popularity state and allocates exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.knapsack import knapsack, whole_sizes
from lightning_t2drl.checks import within
from lightning_t2drl.system.bounds import OracleCaches, oracle_caches
from lightning_t2drl.system.caching import all_caches
from lightning_t2drl.system.scenario import Scenario


@dataclass
class OracleConfig:
    """Keys of `configs/cacher/oracle.yaml`."""

    _target_: str = ""
    slots: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        within("", self, slots=(1, 1e6), seed=(0, 2**63 - 1))


def in_hindsight(scenario: Scenario, ahead: Tensor) -> Tensor:
    """The caches that most of a frame's requests hit, bool [*, M] from the number of requests by model, int [*, M]."""
    wanted = ahead.flatten(0, -2).float()
    if scenario.models <= 12:
        subsets, feasible = all_caches(scenario)
        caches = subsets[feasible]
        best = caches[(wanted @ caches.float().T).argmax(-1)]
    else:
        sizes, capacity = whole_sizes(scenario.model_storage / scenario.storage_capacity, resolution=500)
        best = knapsack(wanted, sizes.tolist(), capacity)
    return best.view(ahead.shape)


class OracleCacher(Cacher):
    """The cache of highest expected utility in the true popularity state, see `oracle_caches`.

    With recorded demand there is no such state: it is the cache of most hits for the requests of the frame itself.
    """

    Config = OracleConfig
    config: OracleConfig
    tell: Callable[[int, int], None] = staticmethod(lambda done, total: None)

    @cached_property
    def caches(self) -> OracleCaches:
        """Found when first needed: it takes some seconds, with several cells minutes; `tell` hears how far it is."""
        return oracle_caches(self.scenario, self.config.slots, self.config.seed, self.tell)

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        if (ahead := observation.get("ahead", None)) is not None:
            return in_hindsight(self.scenario, ahead)
        return self.caches.of(observation["popularity_state"])
