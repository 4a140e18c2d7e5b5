"""Classes by their path and their typed configs: how a YAML file names a cacher, an allocator or a network."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_t2drl.checks import Misfit, nearest
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
    values = {name: _rows_of_floats(value) for name, value in values.items()}
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), values))
    except Misfit as error:
        raise UserError(f"{key}.{error}" if key else str(error)) from None
    except OmegaConfBaseException as error:
        inner, owner, value = _culprit(schema, values)
        full = str(error.full_key or "")
        name = ".".join(part for part in (key, full if full.startswith(inner) else inner) if part)
        if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
            close = nearest(inner.rpartition(".")[2], _names(owner))
            raise UserError(f"{name}: no such key{close or f'; known are {_keys(owner)}'}") from None
        reason = str(error.msg or error).splitlines()[0]
        if any(word in reason for word in ("ListConfig", "subclass")):  # OmegaConf's words, not the user's
            hint = get_type_hints(owner)[inner.rpartition(".")[2]]
            kind = hint.__name__ if isinstance(hint, type) else hint
            reason = f"{value!r} is not {f'a group of {_keys(hint)}' if dataclasses.is_dataclass(hint) else kind}"
        raise UserError(f"{name}: {reason.replace('typing.List', 'list').replace('[typing.Any]', '')}") from None


@functools.lru_cache(maxsize=64)
def _structured(schema: type) -> DictConfig:
    """OmegaConf's form of a dataclass, to be copied: making one takes longer than all that is done with it."""
    return OmegaConf.structured(schema)


def _rows_of_floats(value: Any) -> Any:
    """Integers in lists of lists as floats: OmegaConf converts them in a list, but not in a list of lists."""
    if isinstance(value, Mapping):
        return {key: _rows_of_floats(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    return [[float(v) if type(v) is int else v for v in row] if isinstance(row, list) else row for row in value]


def _culprit(schema: Any, values: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Of the first value that does not fit: its dotted key, the dataclass it was meant for, and itself.

    OmegaConf's errors do not name the whole key where a list or a group stands in another's place.
    """
    for key, value in values.items():
        try:
            OmegaConf.merge(_structured(schema), {key: value})
        except OmegaConfBaseException:
            nested = get_type_hints(schema).get(key)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(nested):
                inner, owner, value = _culprit(nested, value)
                return f"{key}.{inner}", owner, value
            return key, schema, value
    return "", schema, values


def _names(schema: Any) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(schema))


def _keys(schema: Any) -> str:
    return ", ".join(_names(schema))


def class_of(values: Any, key: str) -> Any:
    """The class that a section of a config names by `_target_`; `UserError` where it names none."""
    if not isinstance(values, Mapping) or not values.get("_target_"):
        raise UserError(f"{key}._target_: missing; it names the class to build")
    return locate(values["_target_"], f"{key}._target_")


def config_of(cls: type, values: Mapping[str, Any], key: str) -> Any:
    """A section's values as the config of the class it names, which need not repeat that name; raises as `typed`."""
    known = {field.name for field in dataclasses.fields(cls.Config)}  # type: ignore[attr-defined]
    return typed(cls.Config, {k: v for k, v in values.items() if k != "_target_" or k in known}, key)  # type: ignore[attr-defined]


def build(values: Mapping[str, Any], *args: Any, key: str = "_target_", needs: Sequence[str] = ()) -> Any:
    """Make the class that `values["_target_"]` names: `cls(*args, typed config)`.

    Args:
        values: a section of a config.
        *args: what the class is made with, before its config.
        key: the section's place in the config.
        needs: attributes without which it cannot be used there.

    Raises:
        UserError: there is no such class, its config cannot be, or it is made for another place.
    """
    cls = class_of(values, key)
    config = config_of(cls, values, key)
    try:
        inspect.signature(cls).bind(*args, config)
    except TypeError as error:
        raise UserError(f"{key}._target_: {values['_target_']} cannot be used there ({error})") from None
    built = cls(*args, config)
    missing = [name for name in needs if not hasattr(built, name)]
    if missing:
        raise UserError(f"{key}._target_: {values['_target_']} cannot be used there (it has no {missing[0]})")
    return built
