"""Checks of configs. A failure is one line that names the key, with the nearest name there is."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Iterable
from typing import Any

from lightning_t2drl.errors import UserError


class Misfit(UserError):
    """An impossible value, named by its key within its section; `registry.typed` puts the section before it."""


def within(section: str, config: Any, **ranges: tuple[float, float]) -> None:
    """Check that numbers of a config lie in closed ranges.

    Args:
        section: what stands before the key in the message, such as `loop`. Leave it empty in the `Config` of a class
            that is named by `_target_`: whoever builds it knows the section.
        config: the object whose attributes are checked.
        **ranges: (lowest, highest) by attribute.

    Raises:
        UserError: the first number outside its range, or not finite.
    """
    for key, (low, high) in ranges.items():
        value = getattr(config, key)
        if not (math.isfinite(value) and low <= value <= high):
            raise _refusal(section, key, f"{value} is not between {low:g} and {high:g}")


def one_of(section: str, config: Any, **choices: Iterable[str]) -> None:
    """Check that strings of a config are among those there are; raises `UserError` otherwise."""
    for key, known in choices.items():
        value = getattr(config, key)
        if value not in known:
            raise _refusal(section, key, f"{value!r} is none of {', '.join(known)}")


def _refusal(section: str, key: str, text: str) -> UserError:
    return UserError(f"{section}.{key}: {text}") if section else Misfit(f"{key}: {text}")


def listing(names: Iterable[str], width: int = 80) -> str:
    """Names as far as one line takes them."""
    return textwrap.shorten(", ".join(names), width, placeholder=" ...")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest is X` for a name that is not among the known ones: by its last part, in its own section first."""
    section, _, last = name.rpartition(".")
    ends: dict[str, str] = {}
    for other in known:
        within_section, _, end = other.rpartition(".")
        if within_section == section or end not in ends:
            ends[end] = other
    here = {end: other for end, other in ends.items() if other.rpartition(".")[0] == section}
    for candidates, cutoff in ((here, 0.6), (ends, 0.75)):
        close = difflib.get_close_matches(last, candidates, n=1, cutoff=cutoff)
        if close:
            return f"; the nearest is {candidates[close[0]]}"
    return ""
