"""Checkpoint files: written whole or not at all, verified, read without running code, found again after a crash.

A file is what `torch.save` writes (a zip archive) with a checksum over all of it as the archive's comment: other
programs read the file as before, and every flipped bit is noticed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import sync, sync_directory, temporary_name
from lightning_t2drl.loop import state as run_state

NAME = re.compile(r"frame=(\d+)\.ckpt")
BEST = "best.ckpt"
DAMAGED = ".damaged"  # appended to the name of a file that is set aside

MARK = b"blake2b:"  # stands before the checksum
CHECKSUM = 32  # bytes of it


class DamagedCheckpoint(UserError):
    """A checkpoint whose content has changed since it was written, or that no run can use."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: at any instant the old file or the new one is there, complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises `UserError` when the disk does not take it; what was there before stays."""
        path = Path(path)
        temporary = temporary_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w+b") as file:
                torch.save(checkpoint, file)
                _add_checksum(file)
                file.flush()
                sync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are intact") from None
        finally:
            temporary.unlink(missing_ok=True)


def _add_checksum(file: BinaryIO) -> None:
    """Make a checksum over everything before it the comment of the zip archive in `file`."""
    file.seek(-2, os.SEEK_END)  # the length of the comment, 0 so far
    file.write((len(MARK) + CHECKSUM).to_bytes(2, "little"))
    file.write(MARK)
    file.seek(0)
    checksum = _checksum(file, None)
    file.seek(0, os.SEEK_END)
    file.write(checksum)


def _checksum(file: BinaryIO, length: int | None) -> bytes:
    """Of the next `length` bytes of a file, or of all that follow."""
    digest = hashlib.blake2b(digest_size=CHECKSUM)
    while block := file.read(2**20 if length is None else min(2**20, length)):
        digest.update(block)
        length = None if length is None else length - len(block)
    return digest.digest()


def _verify(path: Path) -> bool:
    """Whether a file has a checksum.

    Raises:
        DamagedCheckpoint: it has one, and another content.
    """
    size = path.stat().st_size - CHECKSUM
    with open(path, "rb") as file:
        if size < len(MARK):
            return False
        file.seek(size - len(MARK))
        if file.read(len(MARK)) != MARK:
            return False
        expected = file.read()
        file.seek(0)
        if _checksum(file, size) != expected:
            raise DamagedCheckpoint(f"{path}: damaged checkpoint (its checksum differs)")
    return True


def frame_of(path: Path) -> int:
    """The frame in a checkpoint's name."""
    return int(path.stem.partition("=")[2])


def in_order(directory: Path) -> list[Path]:
    """Checkpoints of a directory, oldest first."""
    return sorted((path for path in directory.glob("frame=*.ckpt") if NAME.fullmatch(path.name)), key=frame_of)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises:
        UserError: it is missing, of another origin or format, or holds more than plain data.
        DamagedCheckpoint: it is not what was written, or a parameter in it is NaN or infinite.
    """
    if not path.is_file():
        others = in_order(path.parent) if path.stem == "best" else []
        why = f"; the first evaluation after frame 0 makes it; there is {others[-1].name}" if others else ""
        raise UserError(f"{path}: no such checkpoint{why}")
    try:
        checked = _verify(path)
        if not checked:  # no checkpoint, or one of before there were checksums; torch does not compare the archive's
            with zipfile.ZipFile(path) as archive:
                if (entry := archive.testzip()) is not None:
                    raise DamagedCheckpoint(f"{path}: damaged checkpoint (checksum of {entry} differs)")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused, it holds more than plain data and could run code when loaded") from None
    except Exception as error:  # readers of damaged archives raise errors of many kinds
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint ({reason})") from None
    own = run_state.check(content, path)
    if not checked and own["format"] > 1:
        raise DamagedCheckpoint(f"{path}: damaged checkpoint (its checksum is missing)")
    _expect_finite(content["state_dict"], path)
    return content


def _expect_finite(parameters: dict[str, Any], path: Path) -> None:
    for name, value in parameters.items():
        if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
            raise DamagedCheckpoint(f"{path}: parameter {name} holds NaN or infinity")


def newest_good(directory: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a directory that can be read; damaged ones are named and skipped.

    Raises:
        UserError: there is none.
    """
    for path in reversed(in_order(directory)):
        try:
            return path, load_checkpoint(path)
        except UserError as error:
            say(f"skipped: {error}")
    raise UserError(f"{directory}: holds no checkpoint that can be read")


def resolve(path: str, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """A checkpoint by file, by its run's or its own directory, or by the names `last` and `best` in that directory."""
    if not path:
        raise UserError("the name of a checkpoint is empty; name a file or a run's directory")
    given = Path(path)
    if given.name == "last" and not given.exists():
        return newest_good(given.parent, say)
    if given.is_dir():
        return newest_good(given / "checkpoints" if (given / "checkpoints").is_dir() else given, say)
    if given.name == "best" and not given.exists():
        given = given.with_name(BEST)
    return given, load_checkpoint(given)


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither loaded nor counted among those kept."""
    path.replace(path.with_name(path.name + DAMAGED))
