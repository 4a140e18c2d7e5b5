"""The run that an output directory holds: `run.json`, written before anything else and replaced in one step."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically

FILE = "run.json"


@dataclass(frozen=True)
class Parent:
    """Where a branch left another run."""

    run_id: str | None
    frame: int
    checkpoint: str


@dataclass(frozen=True)
class Identity:
    """Of one run: every checkpoint, `summary.json` and W&B run of it carries the same `run_id`.

    Args:
        run_id: eight hexadecimal digits, drawn when the run begins.
        parent: the run and frame it branched from; None where it began at frame 0.
        cut: checkpoints after this frame are abandoned and about to be deleted; None but in that moment.
    """

    run_id: str
    parent: Parent | None = None
    cut: int | None = None

    def owns(self, run_id: str | None, frame: int) -> bool:
        """Whether a checkpoint with this `run_id` and frame lies on this run's timeline."""
        if run_id == self.run_id:
            return True
        return self.parent is not None and run_id == self.parent.run_id and frame <= self.parent.frame


def new_identity(parent: Parent | None = None) -> Identity:
    """A run that has just begun."""
    return Identity(secrets.token_hex(4), parent)


def read_identity(directory: Path) -> Identity | None:
    """The identity of the run in a directory; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parent = content["parent"]
        identity = Identity(content["run_id"], None if parent is None else Parent(**parent), content["cut"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete it, and the newest checkpoint says which run it is") from None
    return identity


def write_identity(directory: Path, identity: Identity) -> None:
    write_atomically(directory / FILE, json.dumps(asdict(identity), indent=2) + "\n")
