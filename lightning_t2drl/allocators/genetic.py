"""A genetic algorithm in every slot: the allocation half of the SCHRS benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.checks import within
from lightning_t2drl.system import amend_allocation, serve
from lightning_t2drl.system.service import steps_of
from lightning_t2drl.system.serving import SITUATION, cell_mean, hits, situation

# Deb's operators at their usual settings: how often two parents are crossed, and each number of them; how often a child
# is mutated, in one number on average; and how close children stay to their parents.
CROSSED, NUMBERS_CROSSED, MUTATED = 0.9, 0.5, 0.9
CLOSE_CROSSED, CLOSE_MUTATED = 15, 20
TOGETHER = 50_000  # users of all candidates whose slots are searched at once


@dataclass
class GeneticConfig:
    """Keys of `configs/allocator/genetic.yaml`."""

    _target_: str = ""
    population: int = 50
    generations: int = 40

    def __post_init__(self) -> None:
        within("", self, population=(2, 1e6), generations=(1, 1e6))


class GeneticAllocator(Allocator):
    """A genetic algorithm over the raw action, evaluated by `serve`; every slot of every world has its own population.

    Parents win binary tournaments; children come of simulated binary crossover and polynomial mutation; of parents and
    children the best survive.
    """

    Config = GeneticConfig
    config: GeneticConfig

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        cells = observation.select(*SITUATION, strict=False).reshape(-1)
        at_once = max(TOGETHER // (self.config.population * self.scenario.users), 1)
        raw = torch.cat([self._search(part) for part in cells.split(at_once)])
        return raw.reshape(*observation.batch_size, self.scenario.users, 2)

    def _search(self, cells: TensorDict) -> Tensor:
        """The best allocation found for each slot, [n, 2U]."""
        people = 2 * self._uniform(len(cells), self.config.population, 2 * self.scenario.users) - 1
        value = self._utility(cells, people)
        for _ in range(self.config.generations - 1):
            children = self._children(self._parents(people, value))
            people = torch.cat((people, children), 1)
            value, best = torch.cat((value, self._utility(cells, children)), 1).topk(self.config.population)
            people = people.gather(1, best.unsqueeze(-1).expand(-1, -1, people.shape[-1]))
        best = value.argmax(-1)[:, None, None].expand(-1, 1, people.shape[-1])
        return people.gather(1, best).squeeze(1)

    def _utility(self, cells: TensorDict, people: Tensor) -> Tensor:
        """Mean utility of each slot's users under each raw allocation, [n, P] from [n, P, 2U]."""
        raw = people.unflatten(-1, (-1, 2))
        cells = cells.unsqueeze(1).expand(*raw.shape[:2])
        shares = amend_allocation(raw, hits(cells["cache"], cells["request"]), cells["attached"])
        steps = steps_of(self.scenario, cells["request"], shares[..., 1])
        served = serve(self.scenario, **situation(cells), bandwidth=shares[..., 0], steps=steps)
        return cell_mean(served["utility"], cells["attached"])

    def _parents(self, people: Tensor, value: Tensor) -> Tensor:
        """Pairs of winners, [n, pairs, 2, 2U], for half as many more children as there is room for.

        Everybody meets three others, or four; of two who meet the better wins.
        """
        n, size = value.shape
        meet = torch.cat([self._uniform(n, size).argsort(-1) for _ in range(4)], -1)[:, : 4 * (3 * size // 4 + 1)]
        meet = meet.unflatten(-1, (-1, 2))
        winner = meet.gather(-1, value.gather(1, meet.flatten(1)).view_as(meet).argmax(-1, keepdim=True))
        winners = people.gather(1, winner.expand(-1, -1, people.shape[-1]))
        return winners.unflatten(1, (-1, 2))

    def _children(self, parents: Tensor) -> Tensor:
        """As many children as there is room for, [n, P, 2U]; copies of a parent only where others lack."""
        children, parents = self._mutate(self._cross(parents)), parents.flatten(1, 2)
        copies = (children == parents).all(-1).byte()
        first = copies.argsort(dim=-1, stable=True)[:, : self.config.population]
        return children.gather(1, first.unsqueeze(-1).expand(-1, -1, children.shape[-1]))

    def _cross(self, parents: Tensor) -> Tensor:
        """Simulated binary crossover within [-1, 1]: children [n, P, 2U] of pairs of parents."""
        low, high = parents.amin(2), parents.amax(2)
        apart, chance = (high - low).clamp_min(1e-6), self._uniform(*low.shape)

        def spread(room: Tensor) -> Tensor:
            area = chance * (2 - (1 + 2 * room / apart) ** -(CLOSE_CROSSED + 1.0))
            return torch.where(area <= 1, area, 1 / (2 - area).clamp_min(1e-6)) ** (1 / (CLOSE_CROSSED + 1.0))

        middle = (low + high) / 2
        children = torch.stack((middle - spread(low + 1) * apart / 2, middle + spread(1 - high) * apart / 2), 2)
        swapped = torch.where((self._uniform(*low.shape) < 0.5).unsqueeze(2), children, children.flip(2))
        crossed = (self._uniform(*low.shape[:2], 1) < CROSSED) & (self._uniform(*low.shape) < NUMBERS_CROSSED)
        crossed = crossed & (low < high)
        children = torch.where(crossed.unsqueeze(2), swapped, parents).clamp(-1, 1)
        return children.flatten(1, 2)

    def _mutate(self, children: Tensor) -> Tensor:
        """Polynomial mutation within [-1, 1]."""
        often = min(0.5, 1 / children.shape[-1])
        mutated = (self._uniform(*children.shape[:2], 1) < MUTATED) & (self._uniform(*children.shape) < often)
        chance = self._uniform(*children.shape)
        down, power = chance <= 0.5, CLOSE_MUTATED + 1.0
        part, room = torch.where(down, chance, 1 - chance), torch.where(down, 1 - children, 1 + children) / 2
        moved = 1 - (2 * part + (1 - 2 * part) * room**power) ** (1 / power)
        return torch.where(mutated, children + 2 * torch.where(down, -moved, moved), children).clamp(-1, 1)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)
