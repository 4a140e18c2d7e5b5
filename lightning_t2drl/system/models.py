"""The models of a catalogue, checked and in SI units: what an edge offers, each with a service profile of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.checks import Misfit, one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import typed
from lightning_t2drl.system.catalogue import BITS_PER_GB, BITS_PER_MB, KEY


@dataclass
class ModelConfig:
    """A model of a catalogue: the keys of its service's profile, and of its own. null is the env's value."""

    name: str = ""
    service: str = ""
    modality: str = "image"
    metric: str = "metric"
    unit: str = ""
    better: str = "lower"
    knots: list[list[float]] = field(default_factory=list)
    seconds_per_step: float | None = None
    base_seconds: float = 0.0
    cost_per_step: float = 1.0
    storage_gb: float | None = None
    input_mb: list[float] | None = None
    output_mb: list[float] | None = None
    deadline: float | None = None
    alpha: float | None = None
    deadline_penalty: float | None = None

    def __post_init__(self) -> None:
        one_of("", self, modality=("image", "text", "video"), better=("lower", "higher"))
        for key in ("knots", "seconds_per_step", "storage_gb"):
            if not getattr(self, key):
                raise Misfit(f"{key}: missing; every model needs it")
        given = {key: getattr(self, key) for key in ("deadline", "alpha", "deadline_penalty")}
        ranges = {"deadline": (1e-6, 1e12), "alpha": (0.0, 1.0), "deadline_penalty": (0.0, 1e6)}
        within("", self, **{key: ranges[key] for key, value in given.items() if value is not None})
        within("", self, seconds_per_step=(0, 1e9), base_seconds=(0, 1e9))
        within("", self, cost_per_step=(1e-9, 1e9), storage_gb=(1e-9, 1e12))
        for key in ("input_mb", "output_mb"):
            value = getattr(self, key)
            if value is not None and (len(value) != 2 or not 0 < value[0] <= value[1] < math.inf):
                raise Misfit(f"{key}: {list(value)} is not a range [low, high]")
        self._check_knots()

    def _check_knots(self) -> None:
        """A quality curve must be worst up to its first knot, and from there on improve and be concave."""
        if len(self.knots) < 2 or any(len(row) != 2 for row in self.knots):
            raise Misfit("knots: need at least two pairs [steps, metric]")
        if not all(math.isfinite(v) and abs(v) <= 1e9 for row in self.knots for v in row) or self.knots[0][0] < 0:
            raise Misfit("knots: steps must be 0 or more, and all numbers finite and at most 1e+09")
        steps, metric = torch.tensor(self.knots).unbind(-1)  # compared in the precision that divides
        gain = metric.diff() * (1 if self.better == "higher" else -1)
        if bool((steps.diff() <= 0).any()):
            raise Misfit("knots: steps must rise from knot to knot")
        if bool((gain <= 0).any()):
            at = self.knots[int((gain <= 0).nonzero()[0]) + 1][0]
            raise Misfit(f"knots: {self.metric} is better when {self.better}, but does not improve at {at:g} steps")
        slope = gain.double() / steps.double().diff()
        if bool((slope.diff() > 1e-5 * slope[:-1]).any()):
            at = self.knots[int((slope.diff() > 1e-5 * slope[:-1]).nonzero()[0]) + 1][0]
            raise Misfit(f"knots: not concave, {self.metric} improves faster beyond {at:g} steps than before")


def models_of(catalogue: Any) -> list[ModelConfig]:
    """The checked models of a catalogue.

    Raises:
        UserError: one line naming the model and the key.
    """
    listed = catalogue.get("models") if isinstance(catalogue, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(model, Mapping) for model in listed):
        raise UserError(f"{KEY}: {catalogue!r} is neither the name of a catalogue nor a group of models")
    if unknown := [key for key in catalogue if key not in ("name", "models")]:
        raise UserError(f"{KEY}.{unknown[0]}: no such key; a catalogue has models, and perhaps a name")
    models, seen = [], set()
    for number, values in enumerate(listed):
        name = str(values.get("name") or f"models[{number}]")
        if name in seen:
            raise UserError(f"{KEY}.{name}: two models have this name")
        seen.add(name)
        models.append(typed(ModelConfig, {**values, "name": name}, f"{KEY}.{name}"))
    return models


def catalogue_fields(models: Sequence[ModelConfig], env: Any) -> dict[str, Any]:
    """The fields of `Scenario` that a catalogue sets.

    Args:
        models: checked.
        env: a `ScenarioConfig`, for what a model leaves open.
    """

    def of(key: str) -> list[Any]:
        return [getattr(env, key) if getattr(model, key) is None else getattr(model, key) for model in models]

    knots = _padded([model.knots for model in models])
    return {
        "model_storage": torch.tensor([model.storage_gb for model in models], dtype=torch.float64) * BITS_PER_GB,
        "floor_steps": knots[:, 0, 0],
        "worst_metric": knots[:, 0, 1],
        "full_steps": knots[:, -1, 0],
        "best_metric": knots[:, -1, 1],
        "knots": knots if knots.shape[1] > 2 else None,
        "seconds_per_step": torch.tensor([float(model.seconds_per_step or 0.0) for model in models]),
        "base_seconds": torch.tensor([model.base_seconds for model in models]),
        "step_cost": _same([model.cost_per_step for model in models]),
        "input_bits": _same_range(of("input_mb")),
        "output_bits": _same_range(of("output_mb")),
        "alpha": _same(of("alpha")),
        "deadline": _same(of("deadline")),
        "deadline_penalty": _same(of("deadline_penalty")),
        "model_names": tuple(model.name for model in models),
        "services": tuple(model.service or model.name for model in models),
        "metrics": tuple(f"{model.metric} ({model.unit})" if model.unit else model.metric for model in models),
    }


def _padded(curves: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    """Curves of so many knots as the longest, the last one repeated; [M, K, 2]."""
    longest = max(len(curve) for curve in curves)
    return torch.tensor([[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves])


def _same(values: Sequence[float]) -> float | Tensor:
    """One number where all are the same, else one per model."""
    return float(values[0]) if len(set(values)) == 1 else torch.tensor([float(value) for value in values])


def _same_range(ranges: Sequence[Sequence[float]]) -> tuple[float, float] | Tensor:
    bits = [(low * BITS_PER_MB, high * BITS_PER_MB) for low, high in ranges]
    return bits[0] if len(set(bits)) == 1 else torch.tensor(bits)
