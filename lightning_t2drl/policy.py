"""What cachers and allocators share: a scenario, a config and a generator. They know nothing of the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario

Metrics = dict[str, Tensor]

LEARNING_RATE_SCHEDULES = ("constant", "cosine")


class Optimise(Protocol):
    """What a policy's `update` calls to take one gradient step: backward, averaging over ranks, clipping, step."""

    def __call__(self, name: str, loss: Tensor) -> None:
        """Minimise `loss` with the optimizer that `optimizers_by_name` returned under `name`."""


class Graph(NamedTuple):
    """A decision as a function of tensors, as an exporter needs it."""

    module: nn.Module  # its `forward` takes the inputs in order
    inputs: dict[str, Tensor]  # of the right shapes and types; values do not matter
    axes: dict[str, dict[int, str]]  # names of the axes left open, by input and position
    output: str  # name of the result


class Exported(NamedTuple):
    """A policy as others run it, without this project."""

    graphs: dict[str, Graph]  # by name of the file
    facts: dict[str, Any]  # plain values that whoever runs the graphs needs


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
        """Seed this policy's own random generator."""
        self.generator.manual_seed(derive_seed(seed, *labels))

    def adam(self, parameters: Iterable[nn.Parameter], rate: float) -> Adam:
        """Adam at its defaults with learning rate `rate`; not fused where gradients are scaled."""
        return Adam(parameters, lr=rate, fused=self.fused_optimizers)

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        """The optimizers of this policy; the names are what `update` passes to `Optimise`."""
        return {}

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self.optimizers_by_name().values())

    @property
    def learning_rate_factor(self) -> float:
        """The factor on the configured learning rates at this point of the run."""
        if getattr(self.config, "learning_rate_schedule", "constant") == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(self.progress, 1.0)))

    def update(self, batch: TensorDict, optimise: Optimise) -> Metrics:
        """One round of gradient steps on a batch of transitions [b], see `transition`; for policies that learn."""
        raise NotImplementedError

    def compile_update(self) -> None:
        """Have what `update` computes compiled when it is first needed.

        Raises:
            UserError: there is nothing to compile.
        """
        raise UserError(f"compile: {type(self).__name__} has no gradient update to compile")

    def export(self) -> Exported:
        """The policy's decision for an operator.

        Raises:
            UserError: it cannot be exported; the line says why.
        """
        raise self.refuse("has no network, so there is nothing to export")

    def extra_state(self) -> dict[str, Any]:
        """Plain values and tensors beyond parameters that an exact resume needs."""
        return {"generator": self.generator.get_state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def parameters_loaded(self, state: Mapping[str, Any]) -> None:
        """Called when parameters alone were loaded, with their checkpoint's `extra_state` or an empty one."""

    def refuse(self, message: str) -> UserError:
        """A `UserError` that starts with this policy's name."""
        return UserError(f"{type(self).__name__} {message}")
