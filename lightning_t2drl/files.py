"""Files that are written whole or not at all, whenever the process is killed, on any file system."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

# Errors of file systems that do not know an operation; they differ.
UNSUPPORTED = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def write_atomically(path: Path, text: str) -> None:
    """Make `text` the content of a file: at any instant the old content or the new is there, complete.

    Raises:
        OSError: the file cannot be written; the old content stays.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """Where this process writes what becomes `path`; `remove_leftovers` finds it after a kill."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def sync(descriptor: int) -> None:
    """Make what was written survive a power cut, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut, where the file system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # such as a directory that may be written but not read
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` another name of `source`'s content, in one step; a copy where there are no hard links."""
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EXDEV, errno.EMLINK):
            raise
        copy_atomically(source, target)
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # os.replace leaves it where both are the same file already
    sync_directory(target.parent)


def copy_atomically(source: Path, target: Path) -> None:
    """Give `target` the content of `source`, in one step."""
    temporary = temporary_name(target)
    try:
        with open(source, "rb") as old, open(temporary, "wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            sync(new.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete what a process killed in the middle of a save left behind; not what another one is about to rename."""
    for path in directory.glob(".*.tmp-*"):
        if path.is_file() and not _another_runs(path.name.rpartition("-")[2]):
            path.unlink(missing_ok=True)


def _another_runs(process: str) -> bool:
    """Whether a process of this number, not this one, is alive on this machine."""
    if not process.isdecimal() or int(process) in (0, os.getpid()):
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def as_json(values: Any) -> str:
    """Plain values as JSON text; NaN and infinity, which JSON does not know, as null."""
    return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
