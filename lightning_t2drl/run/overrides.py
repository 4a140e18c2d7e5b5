"""Reads a command line word by word: sorts out flags, quotes paths, expands sweeps, writes Python values as words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lightning_t2drl.errors import UserError

# Their values are taken as they are: what stands in a path may hold `=`, as checkpoints do, brackets and blanks.
AS_TYPED = ("resume", "checkpoint", "output_dir", "output", "name")
FLAGS = {"-m": "multirun", "--multirun": "multirun", "-h": "help", "--help": "help", "--cfg": "show", "-c": "show"}
CONFIG_DIR = ("--config-dir", "-cd")


@dataclass
class Words:
    """A command line, taken apart.

    Args:
        overrides: `key=value` and the like, in Hydra's grammar.
        config_dirs: directories of `--config-dir`.
        multirun, help, show: whether -m, --help, --cfg was among them.
    """

    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    multirun: bool = False
    help: bool = False
    show: bool = False


def read(arguments: Sequence[str]) -> Words:
    """Sort the words of a command line.

    Raises:
        UserError: a flag that there is not, or a directory that there is not.
    """
    words, rest = Words(), list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in CONFIG_DIR:
            if not equals and not rest:
                raise UserError(f"{flag}: names no directory")
            directory = value if equals else rest.pop(0)
            if not Path(directory).is_dir():
                raise UserError(f"{flag}: {directory} is no directory")
            words.config_dirs.append(str(Path(directory).absolute()))
        elif word in FLAGS:
            setattr(words, FLAGS[word], True)
            if FLAGS[word] == "show" and rest[:1] == ["job"]:  # as Hydra writes it
                rest.pop(0)
        elif word.startswith("-"):
            raise UserError(f"{word}: no such flag; there are {', '.join([*FLAGS, CONFIG_DIR[0]])}")
        else:
            words.overrides.append(word)
    return words


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words on Hydra's launcher, and the others."""
    launcher = [word for word in overrides if re.match(r"[+~]*hydra[./](?!searchpath\b)", word)]
    return launcher, [word for word in overrides if word not in launcher]


def parse(overrides: Iterable[str], multirun: bool = False) -> list[Override]:
    """The words in Hydra's grammar.

    Raises:
        UserError: one cannot be read; the line names it.
    """
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        try:
            override = parser.parse_override(quoted(word, multirun))
        except HydraException as error:
            missing = "=" not in word and not word.startswith("~")
            reason = "a word without = says nothing" if missing else _first_line(error)
            raise UserError(f"{word}: cannot be read as KEY=VALUE ({reason}); quote what is unusual") from None
        if override.package is not None or "@" in str(override.key_or_group):
            raise UserError(f"{word}: these configs have no packages to choose; leave out the @")
        parsed.append(override)
    return parsed


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return next((line for line in lines if not line.startswith(("Error parsing", "See "))), type(error).__name__)


def quoted(word: str, multirun: bool = False) -> str:
    """A word with its value in quotes if that is to be taken as typed; in a sweep, each of the listed values."""
    key, equals, value = word.partition("=")
    as_typed = key.lstrip("+") in AS_TYPED or key.endswith(".file") or value.endswith((".yaml", ".yml"))
    if not equals or not as_typed or value in ("", "null") or value[0] in "'\"[{":
        return word
    pieces = value.split(",") if multirun else [value]
    return f"{key}={','.join(quote(piece) for piece in pieces)}"


def quote(text: str) -> str:
    """Text as Hydra's grammar takes it for exactly that text."""
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}{chr(92) if escaped.endswith(chr(92)) else ''}'"


def as_override(key: str, value: Any) -> list[str]:
    """A Python value as words: `as_override("env", {"users": 3})` is `["env.users=3"]`; `__` in a key is a dot."""
    key = key.replace("__", ".")
    if isinstance(value, dict):
        return [word for inner, content in value.items() for word in as_override(f"{key}.{inner}", content)]
    return [f"{key}={_written(value)}"]


def _written(value: Any) -> str:
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy and PyTorch
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_written(inner) for inner in value) + "]"
    return quote(str(value))


def expand(overrides: Iterable[str]) -> list[list[str]]:
    """The jobs of a sweep, as lists of words: every combination of the values listed.

    Raises:
        UserError: a kind of sweep that lists no values, such as interval(0,1).
    """
    choices: dict[str, list[str]] = {}  # by key, so that the last word on a key counts, as without -m
    for override in parse(overrides, multirun=True):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: -m needs the values listed, as in {key}=1,2 or {key}=range(1,4)")
        words = [f"{key}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else []
        choices.pop(key, None)
        choices[key] = words or [str(override.input_line)]
    return [list(job) for job in itertools.product(*choices.values())]
