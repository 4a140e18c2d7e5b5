"""What is measured: a generative model that makes samples in a number of steps, and what its samples are worth."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed

Values = dict[str, list[float]]  # by metric
Tick = Callable[[str, int, int], None]  # told what is done, how much of it, of how much


class Metric(NamedTuple):
    """A measure of quality."""

    unit: str
    better: str  # lower or higher


class Service:
    """A model that can be measured; `metrics` has the usual one first."""

    modality: str
    metrics: Mapping[str, Metric]
    steps: Sequence[int]
    whole: int | None  # steps of the whole chain, beyond which there are none; None where that is not known
    samples: int
    assumed: Mapping[str, Any]  # keys of the profile that nobody can measure here, such as payloads

    def check_steps(self, steps: Sequence[int]) -> None:
        """Refuse numbers of steps that cannot be made."""
        if self.whole is not None and max(steps) > self.whole:
            raise UserError(f"steps: {max(steps)} is more than the whole chain's {self.whole}")

    def prepare(self, tick: Tick) -> None:
        """Train."""

    def generate(self, steps: int, batch: int, seed: int) -> Any:
        """Make a batch; its seconds are measured."""
        raise NotImplementedError

    def curve(self, steps: Sequence[int], samples: int, seed: int) -> Iterator[tuple[int, Values]]:
        """By number of steps, some values of every metric."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Where the curve comes from, for the profile."""
        return {}


class OwnService(Service):
    """A user's callable `(steps, batch, seed) -> metric values`; what it does beside steps counts as base seconds."""

    steps = (1, 2, 4, 8, 16, 32, 64)
    samples = 64
    assumed: Mapping[str, Any] = {}

    def __init__(self, word: str, metric: str, better: str, modality: str, whole: int | None) -> None:
        self.word, self.call = word, own_callable(word)
        self.metrics = {metric: Metric("", better)}
        self.modality, self.whole = modality, whole

    def generate(self, steps: int, batch: int, seed: int) -> list[float]:
        try:
            values = [float(value) for value in self.call(steps, batch, seed)]
        except Exception as error:  # whatever a user's code raises
            raise UserError(f"service: {self.word} failed ({type(error).__name__}: {error})") from None
        if not values or not all(map(math.isfinite, values)):
            raise UserError(f"service: {self.word} gave no finite values for {steps} steps")
        return values

    def curve(self, steps: Sequence[int], samples: int, seed: int) -> Iterator[tuple[int, Values]]:
        name = next(iter(self.metrics))
        for count in steps:
            values: list[float] = []
            while len(values) < samples:
                values += self.generate(count, min(16, samples - len(values)), derive_seed(seed, count, len(values)))
            yield count, {name: values}

    def facts(self) -> dict[str, Any]:
        return {"model": self.word}


def own_callable(word: str) -> Callable[[int, int, int], Sequence[float]]:
    """What `FILE.py:NAME` names.

    Raises:
        UserError: there is no such file or callable, or it does not take steps, batch and seed.
    """
    path, _, name = word.rpartition(":")
    if not path.endswith(".py") or not name:
        raise UserError(f"service: {word!r} is none of inpaint, text, video and no FILE.py:NAME")
    if not Path(path).is_file():
        raise UserError(f"service: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        raise UserError(f"service: {path} cannot be run ({type(error).__name__}: {error})") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"service: {path} has no callable {name}")
    try:
        inspect.signature(found).bind(1, 1, 0)
    except TypeError as error:
        raise UserError(f"service: {word} must take (steps, batch, seed): {error}") from None
    return found


def weights(net: nn.Module) -> int:
    """How many weights a network has."""
    return sum(parameter.numel() for parameter in net.parameters())


def train(net: nn.Module, loss: Callable[[], torch.Tensor], iterations: int, rate: float, tick: Tick) -> None:
    """Adam with a learning rate that rises for a tenth of the iterations and falls to zero."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=iterations + 1, pct_start=0.1)
    net.train()
    for done in range(1, iterations + 1):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tick("training", done, iterations)
    net.eval()


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights come from this seed; the process's generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
