"""Makes a policy that ships: parameters and config alone of a run, without optimizers, replay and worlds.

python -m tools.ship t2drl-cells            trains it first, by RECIPES; interrupted, it goes on from where it was
python -m tools.ship runs/a policies/NAME   of a run of your own
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, resolve
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.registry import class_of, typed
from lightning_t2drl.run import commands

LARGEST = 2**20  # bytes
POLICIES = Path("policies")
RECIPES = {  # the words of `t2drl train` by policy
    # What is best with two hundred users, nobody learns with forty (policies/README.md).
    "t2drl-any-load": ["experiment=t2drl_loads", "env.users=200", "env.active_users=[5,200]", "frames=600"],
    "t2drl-cells": ["experiment=t2drl_cells"],
    "t2drl-mixed": ["experiment=t2drl_mixed"],
}


def make(name: str, run: Path) -> Path:
    """Train a policy of `RECIPES` in a directory of its own and ship it in the place of its forerunner."""
    commands.run("train", [*RECIPES[name], f"output_dir={run}", "resume=auto"])
    target = ship(str(run), POLICIES / name)
    for former in target.parent.glob("*.ckpt"):
        if former != target:
            former.unlink()
    return target


def ship(run: str, directory: Path) -> Path:
    """Write what decides of a run's newest checkpoint into a directory of its own, and return the file.

    Raises:
        UserError: the run holds no checkpoint, or the policy is larger than one that may be committed.
    """
    path, content = resolve(run, warnings.warn)
    own: dict[str, Any] = content[KEY]
    kept = {"state_dict": content["state_dict"], KEY: own | {"ranks": [], "run_id": None}}
    config = {key: value for key, value in own["config"].items() if key not in ("output_dir", "resume")}
    kept[KEY]["config"] = config | {section: whole(config[section]) for section in ("cacher", "allocator")}
    target = directory / f"frame={own['frame']:09d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(kept, target)
    if target.stat().st_size > LARGEST:
        target.unlink()
        raise UserError(f"{path}: its policy takes more than {LARGEST // 2**20} MiB")
    return target


def whole(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a config with every key that its class has, so that each can be changed when it is evaluated."""
    config = typed(class_of(section, "").Config, section, "")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        key: whole(value) if isinstance(value, dict) and "_target_" in value else value for key, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help=f"one of {', '.join(RECIPES)}; or a checkpoint or a run's directory")
    parser.add_argument("directory", type=Path, nargs="?", help="where to, of a run")
    given = parser.parse_args()
    if given.directory is None and given.run not in RECIPES:
        parser.error(f"{given.run} is none of {', '.join(RECIPES)}; of a run, name the directory that it goes to")
    try:
        at = Path("runs") / given.run
        done = make(given.run, at) if given.directory is None else ship(given.run, given.directory)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    print(done)


if __name__ == "__main__":
    main()
