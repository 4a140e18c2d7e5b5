"""What cachers and allocators share: a scenario, a config, an own generator, and no say over the training loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.scenario import Scenario

Metrics = dict[str, Tensor]

LEARNING_RATE_SCHEDULES = ("constant", "cosine")


class Optimise(Protocol):
    """What a policy's `update` calls to take one gradient step: backward, averaging over ranks, clipping, step."""

    def __call__(self, name: str, loss: Tensor) -> None:
        """Minimise `loss` with the optimizer that `configure_optimizers` returned under `name`."""


def derive_seed(seed: int, *labels: object) -> int:
    """A seed for one purpose: the same for the same labels, unrelated for others; in [0, 2^63)."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def make_generator(device: torch.device | str, seed: int, *labels: object) -> torch.Generator:
    """A generator of its own for one purpose, see `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *labels))


class Policy(L.LightningModule):
    """Base of `Cacher` and `Allocator`.

    A policy knows its own timescale and nothing of Trainer, logger or loop: the coordinator calls it, gathers its
    optimizers by name, saves what `extra_state` returns, and logs the metrics it returns.
    """

    Config: ClassVar[type]
    learns: ClassVar[bool] = False

    def __init__(self, scenario: Scenario, config: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.scenario = scenario
        self.config = config
        self.generator = torch.Generator().manual_seed(0)
        self.fused_optimizers = True
        self.progress = 0.0  # share of the run that is done; schedules are functions of it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Policy:
        """Move the scenario's tensors and the generator along with the parameters."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        self.scenario = self.scenario.to(device)
        if self.generator.device != device:
            self.generator = torch.Generator(device=device).manual_seed(self.generator.initial_seed())
        return self

    def seed(self, seed: int, *labels: object) -> None:
        """Start this policy's own randomness afresh."""
        self.generator.manual_seed(derive_seed(seed, *labels))

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        """The optimizers of this policy; the names are what `update` passes to `Optimise`."""
        return {}

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self.optimizers_by_name().values())

    @property
    def learning_rate_factor(self) -> float:
        """What the configured learning rates are multiplied by at this point of the run."""
        if getattr(self.config, "learning_rate_schedule", "constant") == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(self.progress, 1.0)))

    def extra_state(self) -> dict[str, Any]:
        """Plain values and tensors beyond parameters that an exact resume needs."""
        return {"generator": self.generator.get_state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def refuse(self, message: str) -> UserError:
        """A `UserError` that starts with this policy's name."""
        return UserError(f"{type(self).__name__}: {message}")
