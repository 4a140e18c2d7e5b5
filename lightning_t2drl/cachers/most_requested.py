"""An online cacher: keeps what was requested most so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.system.caching import fill_in_order
from lightning_t2drl.system.scenario import Scenario


@dataclass
class MostRequestedConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class RequestMemory(Cacher):
    """A cacher that orders models by a number it keeps per cell and model, [N, B, M]; starts at 0 every episode."""

    def __init__(self, scenario: Scenario, config: Any) -> None:
        super().__init__(scenario, config)
        self.priority: Tensor | None = None

    def start_episode(self, observation: TensorDict) -> None:
        self.priority = torch.zeros(observation["cache"].shape, device=observation.device)

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        if self.priority is None:
            self.start_episode(observation)
        assert self.priority is not None
        return fill_in_order(self.scenario, self.priority)

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"priority": self.priority}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.priority = state["priority"]


class MostRequestedCacher(RequestMemory):
    """Counts requests since the episode's start and keeps the most requested models, while they fit."""

    Config = MostRequestedConfig

    def observe(self, observation: TensorDict) -> None:
        assert self.priority is not None
        asked = observation["attached"].float()
        self.priority = self.priority.scatter_add(-1, observation["request"], asked)
