"""Where commands other than train write: a new directory below `runs/`, or the one that was named."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_t2drl.errors import UserError

RUNS = Path("runs")


@contextmanager
def new_directory(kind: str, named: str | None) -> Iterator[Path]:
    """An empty directory, `runs/KIND/DATE-TIME` unless one is named; removed again if it stays empty.

    Raises:
        UserError: it holds something, or cannot be written.
    """
    base = RUNS / kind / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory, number = Path(named) if named is not None else base, 0
    while True:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=named is not None)
            if any(directory.iterdir()):
                raise UserError(f"output_dir: {directory} is not empty; choose another")
            break
        except FileExistsError:
            if named is not None:
                raise UserError(f"output_dir: {directory} is no directory") from None
            number += 1
            directory = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    try:
        with leaving_by_finally():  # so that nothing half-written stays
            yield directory
        if named is None:
            point_latest(directory)
    except OSError as error:
        raise UserError(f"output_dir: {error.filename or directory} cannot be written ({error.strerror})") from None
    finally:
        for path in sorted(directory.rglob("*/"), reverse=True):
            with suppress(OSError):  # something was written into it
                path.rmdir()
        with suppress(OSError):
            for path in missing:
                path.rmdir()


@contextmanager
def leaving_by_finally() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that what has to be put away is; not in threads, where none arrives."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set by Python


def point_latest(directory: Path) -> None:
    """Let `latest` beside a directory point to it, where the file system knows symbolic links."""
    temporary = directory.with_name(f".latest.tmp-{os.getpid()}")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(directory.name)
        os.replace(temporary, directory.with_name("latest"))
