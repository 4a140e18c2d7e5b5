"""Range checks whose failure is one line that names the key."""

from __future__ import annotations

import math
from typing import Any

from lightning_t2drl.errors import UserError


def within(section: str, config: Any, **ranges: tuple[float, float]) -> None:
    """Check that numbers of a config lie in closed ranges.

    Args:
        section: what stands before the key in the message, such as `allocator`; empty for top-level keys.
        config: the object whose attributes are checked.
        **ranges: (lowest, highest) by attribute.

    Raises:
        UserError: the first number outside its range, or not finite.
    """
    for key, (low, high) in ranges.items():
        value = getattr(config, key)
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"{_name(section, key)}: {value} is not between {low:g} and {high:g}")


def one_of(section: str, config: Any, **choices: tuple[str, ...]) -> None:
    """Check that strings of a config are among those there are; raises `UserError` otherwise."""
    for key, known in choices.items():
        value = getattr(config, key)
        if value not in known:
            raise UserError(f"{_name(section, key)}: {value!r} is none of {', '.join(known)}")


def _name(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
