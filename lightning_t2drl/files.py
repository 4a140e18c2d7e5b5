"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Make `text` the content of a file: at any instant the old content or the new is there, complete."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` another name of `source`'s content, in one step and without copying."""
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    os.replace(temporary, target)
    sync_directory(target.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete what a process killed in the middle of a save left behind."""
    for path in directory.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)
