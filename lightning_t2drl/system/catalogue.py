"""Catalogues: the models that an edge offers, each with a service profile of its own (docs/how-to/own-services.md).

A catalogue lists models and names the profile of each. It is read once, with all profiles in it, so that a config or a
checkpoint that holds one needs no file besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from lightning_t2drl.checks import Misfit, nearest, one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import typed

BITS_PER_MB = 8e6
BITS_PER_GB = 8e9
KEY = "env.catalogue"
REPLACED = ("model_storage_gb", "service")  # keys of env that a catalogue stands for
FALLBACK = ("input_mb", "output_mb", "alpha", "deadline_penalty")  # keys of env that hold where a model says nothing


def config_root() -> Path:
    """The shipped configs: `configs/` of a clone, `lightning_t2drl/configs` of an installed package."""
    spec = find_spec("lightning_t2drl.configs")
    if spec is None or spec.origin is None:
        raise UserError("lightning_t2drl.configs: not installed; run pip install . in the project's directory")
    return Path(spec.origin).parent


CONFIG_ROOT = config_root()


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


# -- reading


def read_catalogue(given: Any, directories: Iterable[str] = ()) -> Any:
    """A catalogue by name, or by the path of its file, as a mapping with all profiles in it; mappings stay as they are.

    Args:
        given: a file of `configs/catalogue/` or of `catalogue/` in one of the directories, without its ending, or a
            path that ends in `.yaml`. The profiles it names are looked for beside it, then likewise in `service/`.
        directories: the user's config directories.

    Raises:
        UserError: a file is not there or holds something else.
    """
    if not isinstance(given, str):
        return given
    roots = [*map(Path, directories), CONFIG_ROOT]
    path = _file(KEY, "catalogue", given, roots, Path())
    models = _load(KEY, path).get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise UserError(f"{KEY}={given}: holds no list of models")
    return {"name": path.stem, "models": [_whole(model, roots, path.parent) for model in models]}


def _whole(model: Mapping[str, Any], roots: Sequence[Path], beside: Path) -> dict[str, Any]:
    """A model with the keys of the profile that it names."""
    if "service" not in model:
        return dict(model)
    key = f"{KEY}.{model.get('name', '')}.service"
    path = _file(key, "service", str(model["service"]), roots, beside)
    profile = _load(key, path)
    profile.pop("provenance", None)
    return profile | dict(model) | {"name": model.get("name", ""), "service": profile.get("name", path.stem)}


def _file(key: str, kind: str, name: str, roots: Sequence[Path], beside: Path) -> Path:
    own = name.endswith((".yaml", ".yml"))
    places = [beside / name, Path(name)] if own else [root / kind / f"{name}.yaml" for root in roots]
    for path in places:
        if path.is_file():
            return path
    known = sorted({path.stem for root in roots for path in (root / kind).glob("*.yaml")})
    close = nearest(name, known)
    raise UserError(f"{key}={name}: no such {kind}{close}; there are {', '.join(known)}, and files as PATH.yaml")


def _load(key: str, path: Path) -> dict[str, Any]:
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{key}={path}: holds no keys")
    return {str(name): value for name, value in content.items()}


def refuse_both(catalogue: Any, said: Iterable[str]) -> None:
    """Refuse keys of env, given beside a catalogue, that it stands for; `said` without the leading `env.`."""
    models = catalogue.get("models") if isinstance(catalogue, Mapping) else None
    if catalogue is not None:
        for key in said:
            everybody = key in FALLBACK and models and all(model.get(key) is not None for model in models)
            if key.split(".")[0] in REPLACED or everybody:
                raise UserError(f"env.{key}: the catalogue says it for each model; set {KEY}=null, or a catalogue")


# -- in SI units


def models_of(catalogue: Any) -> list[ModelConfig]:
    """The checked models of a catalogue.

    Raises:
        UserError: one line naming the model and the key.
    """
    if not isinstance(catalogue, Mapping) or not catalogue.get("models"):
        raise UserError(f"{KEY}: {catalogue!r} is neither the name of a catalogue nor a group of models")
    models, seen = [], set()
    for number, values in enumerate(catalogue["models"]):
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
