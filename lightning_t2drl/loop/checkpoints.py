"""Checkpoint files: written whole or not at all, read without running anything, found again after a crash."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import sync_directory
from lightning_t2drl.loop import state as run_state

PATTERN = "frame=*.ckpt"
BEST = "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: at any instant the old file or the new one is there, complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises `UserError` when the disk does not take it; what was there before stays."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are intact") from None
        finally:
            temporary.unlink(missing_ok=True)


def in_order(directory: Path) -> list[Path]:
    """Checkpoints of a directory, oldest first."""
    return sorted(directory.glob(PATTERN), key=lambda path: int(path.stem.partition("=")[2]))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises:
        UserError: it is missing, damaged, of another origin or format, or holds more than plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: damaged checkpoint (checksum of {damaged} differs)")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused, it holds more than plain data and could run code when loaded") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({str(error).splitlines()[0]})") from None
    run_state.check(content, path)
    return content


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
    given = Path(path)
    if given.name == "last" and not given.exists():
        return newest_good(given.parent, say)
    if given.is_dir():
        return newest_good(given / "checkpoints" if (given / "checkpoints").is_dir() else given, say)
    if given.name == "best" and not given.exists():
        given = given.with_name(BEST)
    return given, load_checkpoint(given)
