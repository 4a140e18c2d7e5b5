"""Where a run writes: choosing the directory and keeping other processes out of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import UNSUPPORTED
from lightning_t2drl.loop.distributed import is_rank_zero
from lightning_t2drl.run.schemas import TrainConfig

OUTPUT_DIR_VARIABLE = "LIGHTNING_T2DRL_OUTPUT_DIR"  # tells the processes that DDP starts which directory rank 0 chose
LOCK = ".lock"
OWNER = ".lock-owner"  # on file systems that know no locks: who has the directory
UNREADABLE_IS_STALE = 60.0  # seconds; an older owner file that names nobody was left by a kill


@contextmanager
def output_directory(config: TrainConfig) -> Iterator[Path]:
    """The run's directory, locked against a second process while the run lasts.

    What was created for it is removed again if nothing was put into it.

    Raises:
        UserError: it cannot be written or is in use.
    """
    if not is_rank_zero():
        chosen = os.environ.get(OUTPUT_DIR_VARIABLE) or config.output_dir
        if chosen is None:
            raise UserError("output_dir: processes that are started one by one need the same directory, so name it")
        yield Path(chosen)
        return
    directory, made = _make(config)
    try:
        with _locked(directory):
            os.environ[OUTPUT_DIR_VARIABLE] = str(directory)
            try:
                yield directory
            finally:
                os.environ.pop(OUTPUT_DIR_VARIABLE, None)
    finally:
        with suppress(OSError):  # not empty: the run has begun
            for path in made:
                path.rmdir()


def _make(config: TrainConfig) -> tuple[Path, list[Path]]:
    """The directory, and what was created for it, innermost first."""
    if config.output_dir is not None:
        directory = Path(config.output_dir)
        return directory, _create(directory, exist_ok=True)
    if config.resume == "auto":
        raise UserError("resume: auto needs output_dir, the directory of the run to go on with")
    base = Path("runs") / config.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(10_000):  # jobs of a sweep may start in the same second
        directory = base if attempt == 0 else base.with_name(f"{base.name}-{attempt}")
        with suppress(FileExistsError):
            return directory, _create(directory, exist_ok=False)
    raise UserError(f"output_dir: no free name beside {base}")


def _create(directory: Path, exist_ok: bool) -> list[Path]:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise UserError(f"output_dir: {directory} is no directory") from None
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    return missing


# -- the lock


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    try:
        lock = _flock(directory)
        if lock is None:
            _own(directory)
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        (directory / (OWNER if lock is None else LOCK)).unlink(missing_ok=True)
        if lock is not None:
            lock.close()


def _flock(directory: Path) -> IO[str] | None:
    """The lock file, open and locked by the kernel; None where the file system knows no locks."""
    path = directory / LOCK
    while True:
        lock = open(path, "a")  # noqa: SIM115 - held for the length of the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former owner may have deleted the file in between: then this locks a file that is gone.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except OSError as error:
            lock.close()
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise UserError(f"output_dir: {directory} is in use by another process") from None
            if error.errno not in UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            return None
        lock.close()


def _own(directory: Path) -> None:
    """Become the owner of a directory by creating a file that only one process can create."""
    path = directory / OWNER
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            _expect_stale(directory, path)
            path.unlink(missing_ok=True)
            continue
        with open(descriptor, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        return


def _expect_stale(directory: Path, path: Path) -> None:
    """Return if the owner of a directory is gone; raise `UserError` if it runs, or may run on another machine."""
    busy = f"output_dir: {directory} is in use by "
    try:
        owner = json.loads(path.read_text())
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # just being written, or torn
        if time.time() - path.stat().st_mtime > UNREADABLE_IS_STALE:
            return
        raise UserError(f"{busy}another process") from None
    if host != socket.gethostname():
        raise UserError(f"{busy}process {pid} on {host}; if that is gone, delete {path}")
    if _lives(pid) and _started(pid) == started:
        raise UserError(f"{busy}process {pid}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's clock ticks, as numbers of processes are used again; None if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
