"""Catalogues: the models that an edge offers, each with a service profile of its own (docs/how-to/own-services.md).

A catalogue lists models and names the profile of each. It is read once, with all profiles in it, so that a config or a
checkpoint that holds one needs no file besides. Reading needs no PyTorch; `models` checks what was read.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_t2drl.checks import nearest
from lightning_t2drl.errors import UserError

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
    content = _load(KEY, path)
    models = content.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise UserError(f"{KEY}={given}: holds no list of models")
    return content | {"name": path.stem, "models": [_whole(model, roots, path.parent) for model in models]}


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
        content = copy.deepcopy(_content(path.absolute(), path.stat().st_mtime_ns))
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{key}={path}: holds no keys")
    return {str(name): value for name, value in content.items()}


@functools.lru_cache(maxsize=64)
def _content(path: Path, modified: int) -> Any:
    """What a file holds: models share profiles, and parsing one takes as long as the rest of composing a config."""
    return OmegaConf.to_container(OmegaConf.load(path))


def refuse_both(catalogue: Any, said: Iterable[str]) -> None:
    """Refuse keys of env, given beside a catalogue, that it stands for; `said` without the leading `env.`."""
    models = catalogue.get("models") if isinstance(catalogue, Mapping) else None
    if catalogue is not None:
        for key in said:
            everybody = key in FALLBACK and models and all(model.get(key) is not None for model in models)
            if key.split(".")[0] in REPLACED or everybody:
                raise UserError(f"env.{key}: the catalogue says it for each model; set {KEY}=null, or a catalogue")
