"""An online cacher: keeps what was requested last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict

from lightning_t2drl.cachers.most_requested import RequestMemory
from lightning_t2drl.system.scenario import Scenario


@dataclass
class LRUConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class LRUCacher(RequestMemory):
    """Least recently used goes first: models are kept by the slot of their last request, while they fit."""

    Config = LRUConfig

    def __init__(self, scenario: Scenario, config: LRUConfig) -> None:
        super().__init__(scenario, config)
        self.clock = 0

    def start_episode(self, observation: TensorDict) -> None:
        super().start_episode(observation)
        self.clock = 0

    def observe(self, observation: TensorDict) -> None:
        assert self.priority is not None
        self.clock += 1
        asked = torch.zeros_like(self.priority).scatter_add(-1, observation["request"], observation["attached"].float())
        self.priority = torch.where(asked > 0, float(self.clock), self.priority)

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"clock": self.clock}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.clock = state["clock"]
