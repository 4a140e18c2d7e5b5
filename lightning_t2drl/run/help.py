"""What `t2drl COMMAND --help` prints: the choices of every group, each in its own words, and the keys."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_t2drl.run.choices import groups, inner_groups, options
from lightning_t2drl.run.commands import Command
from lightning_t2drl.run.compose import compose

WIDTH = 80
FLAGS = {
    "-m": "one run for every combination of the values listed: seed=0,1,2",
    "--config-dir=DIR": "choices of your own: DIR/env/NAME.yaml and so on",
    "--cfg": "print the composed config and stop",
}
LAUNCHERS = "with -m: hydra/launcher=basic | joblib | submitit_local | submitit_slurm | ray"


def command_help(name: str, command: Command, directories: Sequence[str]) -> str:
    """All of it, in at most 80 columns."""
    flags = [f"--config-dir={directory}" for directory in directories]
    lines = [command.about, "", f"usage: t2drl {name} [FLAG ...] [GROUP=CHOICE ...] [KEY=VALUE ...]"]
    lines += [f"       t2drl {name} {command.example}", ""]
    lines += [f"  {flag:<18}{about}" for flag, about in FLAGS.items() if flag != "-m" or command.sweeps]
    lines += [f"  {LAUNCHERS}"] if command.sweeps else []
    for group, default in groups(name).items():
        lines += ["", f"{group}=CHOICE or {group}=PATH.yaml" + (f"   (default: {default})" if default else "")]
        for choice, about in options(group, directories).items():
            lines += _entry(choice, about)
        lines += [f"  {inner}=" + " | ".join(options(inner, directories)) for inner in inner_groups(group)]
    plain = compose(name, flags).plain
    lines += ["", "Keys and their values where nothing else is chosen or said:"]
    for section, keys in _sections(plain):
        lines += ["", *([f"{section}."] if section else [])]
        text = "  ".join(f"{key}={_brief(value)}" for key, value in keys.items())
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", **_WHOLE_WORDS)
    return "\n".join(lines)


_WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}


def _entry(choice: str, about: str) -> list[str]:
    indent = " " * 21
    wrapped = textwrap.wrap(about, WIDTH, initial_indent=indent, subsequent_indent=indent, **_WHOLE_WORDS) or [indent]
    return [f"  {choice:<18} {wrapped[0].strip()}", *wrapped[1:]]


def _sections(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of a config by section, outer ones first."""
    yield prefix, {key: value for key, value in plain.items() if not isinstance(value, dict)}
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _sections(value, f"{prefix}.{key}" if prefix else key)


def _brief(value: Any) -> str:
    if isinstance(value, list) and value:
        text = "[" + ",".join(map(_brief, value)) + "]"
        return text if len(text) <= 24 else f"[{_brief(value[0])},...]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
