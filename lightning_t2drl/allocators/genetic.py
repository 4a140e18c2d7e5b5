"""A genetic algorithm in every slot: the allocation half of the SCHRS benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import Problem
from pymoo.optimize import minimize
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.checks import within
from lightning_t2drl.system import amend_allocation, serve
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import steps_of
from lightning_t2drl.system.serving import SITUATION, cell_mean, hits, situation


@dataclass
class GeneticConfig:
    """Keys of `configs/allocator/genetic.yaml`."""

    _target_: str = ""
    population: int = 50
    generations: int = 40

    def __post_init__(self) -> None:
        within("", self, population=(2, 1e6), generations=(1, 1e6))


class _SlotProblem(Problem):
    """One cell's slot for pymoo: minimises the negated mean utility over raw allocations in [-1, 1]^(2U)."""

    def __init__(self, scenario: Scenario, cell: TensorDict) -> None:
        self.scenario, self.cell, self.users = scenario, cell, scenario.users
        super().__init__(n_var=2 * scenario.users, n_obj=1, xl=-1.0, xu=1.0)

    def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        raw = torch.as_tensor(x, dtype=torch.float32).unflatten(-1, (self.users, 2))
        cell = self.cell.expand(len(raw))
        shares = amend_allocation(raw, hits(cell["cache"], cell["request"]), cell["attached"])
        served = serve(
            self.scenario,
            **situation(cell),
            bandwidth=shares[..., 0],
            steps=steps_of(self.scenario, cell["request"], shares[..., 1]),
        )
        out["F"] = -cell_mean(served["utility"], cell["attached"]).double().numpy()


class GeneticAllocator(Allocator):
    """pymoo's genetic algorithm over the raw action, evaluated by `serve` for a whole population at once.

    Every slot of every world is searched by itself, one after the other, on the CPU.
    """

    Config = GeneticConfig
    config: GeneticConfig

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        scenario = self.scenario.to("cpu")
        cells = observation.select(*SITUATION, strict=False).to("cpu").reshape(-1)
        seeds = torch.randint(2**31 - 1, (len(cells),), generator=self.generator, device=self.generator.device)
        found = [self._search(scenario, cell, seed) for cell, seed in zip(cells, seeds.tolist(), strict=True)]
        raw = torch.stack(found).reshape(*observation.batch_size, scenario.users, 2)
        return raw.to(self.generator.device)

    def _search(self, scenario: Scenario, cell: TensorDict, seed: int) -> Tensor:
        algorithm = GA(pop_size=self.config.population)
        result = minimize(
            _SlotProblem(scenario, cell), algorithm, ("n_gen", self.config.generations), seed=seed, verbose=False
        )
        return torch.as_tensor(result.X, dtype=torch.float32).reshape(scenario.users, 2)
