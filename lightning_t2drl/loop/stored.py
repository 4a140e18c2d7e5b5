"""The config stored in a checkpoint, as plain data: nothing is interpolated, and no class of others is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lightning_t2drl.errors import UserError

KEY = "lightning_t2drl"  # the project's part of a checkpoint, beside Lightning's
SECTIONS = ("env", "cacher", "allocator")
OWN = "lightning_t2drl."


def stored_sections(checkpoint: Mapping[str, Any], path: object) -> dict[str, dict[str, Any]]:
    """The env, cacher and allocator of a checkpoint's config.

    Raises:
        UserError: it holds none, or text that a config would interpolate.
    """
    config = checkpoint[KEY].get("config")
    if not isinstance(config, Mapping) or not all(isinstance(config.get(name), Mapping) for name in SECTIONS):
        raise UserError(f"{path}: the checkpoint holds no config of {', '.join(SECTIONS)}")
    for key, value in leaves({name: config[name] for name in SECTIONS}):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UserError(f"{path}: refused, {key} of its config is {value!r}, which is no plain value")
    return {name: dict(config[name]) for name in SECTIONS}


def refuse_foreign(content: Mapping[str, Any], trust: Collection[str], path: object) -> None:
    """A checkpoint may only name the project's classes, unless the user trusts the module.

    Args:
        content: dotted keys and values that come from the checkpoint.
        trust: modules whose classes it may name.
        path: the checkpoint.

    Raises:
        UserError: it names another class; the line says how to trust it.
    """
    for key, value in content.items():
        if key.endswith("._target_") and not str(value).startswith(OWN):
            module = str(value).rpartition(".")[0]
            if not any(module == name or module.startswith(f"{name}.") for name in trust):
                raise UserError(f"{path}: its {key} is {value}; trust=[{module}] lets that module be imported")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted key: value}; lists stay whole."""
    if not isinstance(values, dict):
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of nested mappings and lists."""
    inner = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else None
    if inner is None:
        yield prefix, values
        return
    for key, value in inner:
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
