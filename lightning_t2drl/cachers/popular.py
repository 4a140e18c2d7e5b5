"""Static caching of what is requested most in the long run."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.policy import Exported
from lightning_t2drl.system.caching import fill_in_order
from lightning_t2drl.system.demand import stationary_distribution


@dataclass
class PopularConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class PopularCacher(Cacher):
    """Most popular first under the chain's stationary distribution, while it fits (the caching half of SCHRS).

    With rankings per cell, each cell holds what is popular there.
    """

    Config = PopularConfig

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        scenario = self.scenario
        popularity = stationary_distribution(scenario.popularity_transition) @ scenario.request_probability
        return fill_in_order(scenario, popularity).expand(*observation.batch_size, scenario.models)

    def export(self) -> Exported:
        if self.scenario.request_probability.ndim > 2:
            raise self.refuse("holds other models in each cell, so there is no one policy to export")
        return Exported({}, {"constant": self.decide(TensorDict({}, batch_size=[])).tolist()})
