"""Classes by their path and their typed configs: how a YAML file names a cacher, an allocator or a network."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_t2drl.errors import UserError


def locate(path: str, key: str = "_target_") -> Any:
    """The class at a dotted path such as `lightning_t2drl.cachers.ddqn.DDQNCacher`.

    Raises:
        UserError: there is none, or it has no `Config`.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}: no class {path!r} can be imported ({error})") from None
    if not dataclasses.is_dataclass(getattr(found, "Config", None)):
        raise UserError(f"{key}: {path} has no dataclass `Config`; see the README on writing your own")
    return found


def typed(schema: type, values: Mapping[str, Any], key: str) -> Any:
    """`values` as an instance of the dataclass `schema`.

    Raises:
        UserError: a key that the schema does not have, or a value of another type; the line names `key`.KEY.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        name = ".".join(part for part in (key, str(error.full_key or error.key or "")) if part)
        if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
            owner = error.object_type if dataclasses.is_dataclass(error.object_type) else schema
            known = ", ".join(sorted(f.name for f in dataclasses.fields(owner)))
            raise UserError(f"{name}: no such key; known are {known}") from None
        raise UserError(f"{name}: {str(error.msg or error).splitlines()[0]}") from None


def build(values: Mapping[str, Any], *args: Any, key: str = "_target_") -> Any:
    """Make the class that `values["_target_"]` names: `cls(*args, typed config)`."""
    if not isinstance(values, Mapping) or not values.get("_target_"):
        raise UserError(f"{key}._target_: missing; it names the class to build")
    cls = locate(values["_target_"], f"{key}._target_")
    return cls(*args, typed(cls.Config, values, key))
