"""Where a run writes: choosing the directory and keeping other processes out of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.distributed import is_rank_zero
from lightning_t2drl.run.schemas import TrainConfig

OUTPUT_DIR_VARIABLE = "LIGHTNING_T2DRL_OUTPUT_DIR"  # tells the processes that DDP starts which directory rank 0 chose


@contextmanager
def output_directory(config: TrainConfig) -> Iterator[Path]:
    """The run's directory, locked against a second process while the run lasts.

    Raises:
        UserError: it cannot be written, is in use, or holds another run and `resume` was not asked for.
    """
    if not is_rank_zero():
        yield Path(os.environ.get(OUTPUT_DIR_VARIABLE) or str(config.output_dir))
        return
    directory = _choose_directory(config)
    lock_path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(lock_path, "w")  # noqa: SIM115 - held for the length of the run
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"output_dir: {directory} is in use by another process") from None
    try:
        if config.resume is None and any(path.name != ".lock" for path in directory.iterdir()):
            raise UserError(f"output_dir: {directory} is not empty; resume=auto goes on with it, or choose another")
        os.environ[OUTPUT_DIR_VARIABLE] = str(directory)
        yield directory
    finally:
        os.environ.pop(OUTPUT_DIR_VARIABLE, None)
        lock_path.unlink(missing_ok=True)
        lock.close()


def _choose_directory(config: TrainConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir)
    if config.resume is not None:
        raise UserError("output_dir: name the directory of the run to resume")
    base = Path("runs") / config.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(10_000):  # jobs of a sweep may start in the same second
        directory = base if attempt == 0 else base.with_name(f"{base.name}-{attempt}")
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    raise UserError(f"output_dir: no free name beside {base}")
