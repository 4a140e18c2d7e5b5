"""Zipf requests under a Markov chain of popularity states, as in the default scenario."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.demands.base import Demand


@dataclass
class MarkovConfig:
    """No keys: they are `env.zipf_skewness`, `env.popularity_transition` and the like."""

    _target_: str = ""


class MarkovDemand(Demand):
    """Each user asks for one model by the probabilities of its cell's popularity state."""

    Config = MarkovConfig

    def request(self, popularity: Tensor, serving: Tensor | None, time: Tensor, uniform: Tensor) -> Tensor:
        scenario = self.scenario
        demand = scenario.demand(popularity)
        if scenario.chains == 1 or serving is None:
            return inverse_cdf(scenario.request_cdf[demand[:, 0]], uniform)
        own = demand.gather(1, serving.clamp_min(0))  # who is absent asks for nothing: no cell sees what stands there
        return inverse_cdf(scenario.request_cdf[own], uniform.unsqueeze(-1)).squeeze(-1)
