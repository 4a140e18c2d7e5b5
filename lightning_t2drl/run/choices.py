"""Groups of configs and their choices: shipped, in a user's own directories, or a file named by its path."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_t2drl.checks import nearest
from lightning_t2drl.errors import UserError
from lightning_t2drl.run import renamed
from lightning_t2drl.system.catalogue import CONFIG_ROOT

Nodes = dict[tuple[str, str], Any]  # (group, choice): its content, for choices that are no file of a config directory

LAUNCHER_EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}  # what installs which launcher


def primary(command: str) -> Any:
    """The config of a command as its file has it."""
    return copy.deepcopy(_read(command))


@functools.cache
def _read(command: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONFIG_ROOT / f"{command}.yaml"))


def groups(command: str) -> dict[str, str | None]:
    """The groups of a command, and the default choice of each."""
    pairs = [next(iter(entry.items())) for entry in primary(command)["defaults"] if isinstance(entry, dict)]
    return {group: choice for group, choice in pairs if not group.startswith("override ")}


def inner_groups(group: str) -> list[str]:
    """The groups of parts of a group's choices, such as `env/channel`."""
    folders = sorted(path.name for path in (CONFIG_ROOT / group).iterdir() if path.is_dir())
    return [f"{group}/{name}" for name in folders if options(f"{group}/{name}")]


def options(group: str, directories: Sequence[str] = ()) -> dict[str, str]:
    """The choices of a group, and the description in each file's first lines."""
    found = {}
    for root in (CONFIG_ROOT, *map(Path, directories)):
        for path in sorted(
            (root / group).glob("[!_]*.yaml")
        ):  # names with a leading _ are parts that others are made of
            lines = [line for line in path.read_text().splitlines() if line.startswith("# ")]
            found[path.stem] = next((line[2:] for line in lines if not line.startswith("# @package")), "")
    return dict(sorted(found.items()))


def no_such_choice(group: str, choice: Any, directories: Sequence[str]) -> str:
    """The line for a choice that there is not."""
    if group == "hydra/launcher" and choice in LAUNCHER_EXTRAS:
        return f"{group}={choice}: not installed; pip install 'lightning-t2drl[{LAUNCHER_EXTRAS[choice]}]'"
    if new := renamed.CHOICES.get(f"{group}={choice}"):
        return f"{group}={choice}: renamed; it is {new} now"
    known = list(options(group, directories))
    if not known:
        return f"{group}={choice}: no such choice"
    return f"{group}={choice}: no such choice{nearest(str(choice), known)}; there are {', '.join(known)}"


def file_choice(group: str, path: Path, nodes: Nodes, directories: Sequence[str]) -> str:
    """Make a file outside the config directories a choice of a group, with the files beside it that it builds on.

    Args:
        group: such as `env`.
        path: of the file. What its `defaults:` name is looked for beside it, then in the group.
        nodes: where its content goes.
        directories: the user's config directories.

    Returns:
        The name of the choice, the file's own unless that is taken.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:  # OmegaConf's own, of a file that holds a single value, has no reason
        why = f"cannot be read ({error.strerror})" if error.strerror else "holds no keys"
        raise UserError(f"{group}={path}: {why}") from None
    except RecursionError:
        raise UserError(f"{group}={path}: one of its aliases holds itself") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{group}={path}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{group}={path}: holds no keys")
    name = path.stem
    while name in options(group, directories):
        name += "_"
    nodes[group, name] = content
    bases = content.get("defaults", [])
    if not isinstance(bases, list):
        raise UserError(f"{group}={path}: its defaults are no list")
    for place, base in enumerate(bases):
        beside = path.with_name(f"{base}.yaml")
        if isinstance(base, str) and beside != path and beside.is_file():
            bases[place] = file_choice(group, beside, nodes, directories)
    return name


@contextmanager
def offered(nodes: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    """Let Hydra find these choices, within the context."""
    Plugins.instance()  # they register choices of their own when they are first needed, which must stay
    store = ConfigStore.instance()
    before = store.repo
    store.repo = copy.deepcopy(before)
    try:
        for (group, name), content in nodes.items():
            store.store(name=name, group=group or None, node=content)
        yield
    finally:
        store.repo = before
