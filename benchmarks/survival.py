"""Kills a run at random instants, goes on each time, and compares the end with an untouched run, bit for bit.

    python -m benchmarks.survival --kills 50

Also prints what a checkpoint costs at the default settings of the quickstart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lightning_t2drl.files import write_atomically
from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.run.cli import main as run_command
from lightning_t2drl.suite.benchmark import commit

# Every run is a fork of one process that has paid for the imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_t2drl.run.cli", "lightning_t2drl.run.train"])

RUN = [
    "experiment=quickstart", "seed=5", "env.num_envs=4", "env.frames_per_episode=2", "env.slots_per_frame=3",
    "loop.slot_warmup=12", "loop.frame_warmup=4", "loop.slot_batch_size=8", "loop.frame_batch_size=8",
    "loop.slot_capacity=200", "loop.log_every_n_frames=1", "checkpoint.every_n_frames=1", "evaluation.every_n_frames=4",
    "evaluation.episodes=2", "evaluation.final_episodes=2", "progress_bar=false", "figures=false",
]  # fmt: skip
FRAMES_PER_KILL = 8  # a run so long that it is not over before its last kill
TEMPORARY = "checkpoints/.frame=*.tmp-*"  # there while a checkpoint is being written

PLACES = ("devices", "num_nodes")  # where the same processes run

PARTS = {  # part of a checkpoint: where it is
    "parameters": ("state_dict",),
    "optimizers": ("optimizer_states", "lr_schedulers"),
    "replay buffers": ("replay",),
    "environment": ("env",),
    "generators and memories of policies": ("policies", "global_rng"),
}


# -- runs


def start(arguments: list[str], log: Path, **environment: str) -> multiprocessing.process.BaseProcess:
    """`train.py` with these arguments in a process of its own, its output appended to `log`."""
    process = CONTEXT.Process(target=_train, args=(arguments, log, environment))
    process.start()
    return process


def _train(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # as in any other process; a fork server's child has its own
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["train.py", *arguments]  # what DDP starts its other processes with
    run_command(["train", *arguments])


def finish(process: multiprocessing.process.BaseProcess, log: Path) -> None:
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the run ended with status {process.exitcode}:\n{log.read_text()[-2000:]}")


# -- kills


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: what it was aimed at, the newest checkpoint it left, and whether it came in the middle of a save."""

    aim: str
    frame: int
    during_save: bool


def newest(directory: Path) -> int:
    """Frame of the newest checkpoint, 0 where there is none."""
    return max((int(path.stem.partition("=")[2]) for path in in_order(directory / "checkpoints")), default=0)


def kill_once(directory: Path, arguments: list[str], aim: str, rng: random.Random, log: Path) -> Kill:
    """Begin or go on with the run in `directory` and kill it at a random instant.

    Args:
        directory: of the run.
        arguments: of `train.py`.
        aim: `starting` (any instant of the first half second), `playing` (any instant around a few frames later) or
            `saving` (as soon as a checkpoint is being written, or a little later).
        rng: draws the instant.
        log: where the run's output goes.
    """
    process = start([*arguments, "resume=auto"], log)
    before = newest(directory)
    if aim == "starting":
        pause = rng.uniform(0, 0.5)
    elif aim == "playing":
        target = before + rng.randint(1, 4)
        _wait(process, lambda: newest(directory) >= target)
        pause = rng.uniform(0, 0.05)
    else:
        target = before + rng.randint(0, 3)
        _wait(process, lambda: newest(directory) >= target and any(directory.glob(TEMPORARY)))
        pause = rng.choice((0.0, rng.uniform(0, 0.005)))
    time.sleep(pause)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended before it was killed, status {process.exitcode}:\n{log.read_text()[-2000:]}")
    return Kill(aim, newest(directory), any(directory.glob(TEMPORARY)))


def _wait(process: multiprocessing.process.BaseProcess, ready: Callable[[], bool]) -> None:
    while process.is_alive() and not ready():
        time.sleep(0.0002)


def survive(place: Path, kills: int, seed: int, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Kill a run `kills` times, let it end, and compare it with one that was left alone.

    Args:
        place: an existing directory for both runs and their output.
        kills: SIGKILLs.
        seed: of the instants.
        say: told of every kill.

    Returns:
        Number and kinds of kills, damaged checkpoints met, and by part whether both runs are identical.
    """
    rng = random.Random(seed)
    whole, killed = place / "whole", place / "killed"
    arguments = [*RUN, f"frames={FRAMES_PER_KILL * kills}"]
    untouched = start([*arguments, f"output_dir={whole}"], place / "whole.log")
    arguments.append(f"output_dir={killed}")
    done: list[Kill] = []
    for number in range(kills):
        aim = ("starting", "playing", "saving")[number % 3]
        done.append(kill_once(killed, arguments, aim, rng, place / "killed.log"))
        say(f"kill {number + 1}/{kills}: {aim}, newest checkpoint {done[-1].frame}, in a save: {done[-1].during_save}")
    finish(start([*arguments, "resume=auto"], place / "killed.log"), place / "killed.log")
    finish(untouched, place / "whole.log")
    return {
        "kills": len(done),
        "during_a_save": sum(kill.during_save for kill in done),
        "before_the_first_checkpoint": sum(kill.frame == 0 for kill in done),
        "frames": FRAMES_PER_KILL * kills,
        "damaged_checkpoints_skipped": (place / "killed.log").read_text().count("skipped:"),
        "identical": compare(whole, killed),
    }


# -- comparison


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints' contents differ, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f"{path}/{key}" for key in a.keys() ^ b.keys()]
        return keys + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if a == b else [path]


def compare(one: Path, two: Path) -> dict[str, bool]:
    """By part, whether two output directories hold the same run; only times and places may differ."""
    contents = [load_checkpoint(in_order(directory / "checkpoints")[-1]) for directory in (one, two)]
    for content in contents:
        content[KEY].pop("run_id")
        config = content[KEY]["config"]
        for section, key in ((config, "output_dir"), (config, "resume"), *((config["trainer"], k) for k in PLACES)):
            section.pop(key)
    differing = differences(*contents)
    out = {
        part: not any(name in path.split("/") for path in differing for name in names) for part, names in PARTS.items()
    }
    out["the whole checkpoint"] = not differing
    for file in ("metrics.csv", "evaluations.csv"):
        tables = [pd.read_csv(d / file).drop(columns=["run", "slots_per_second"], errors="ignore") for d in (one, two)]
        out[file] = tables[0].equals(tables[1]) and bool(tables[0]["frame"].is_unique)
    results = [json.loads((directory / "evaluation.json").read_text()) for directory in (one, two)]
    out["evaluation.json"] = results[0] == results[1]
    return out


# -- cost


def checkpoint_cost(place: Path, *overrides: str) -> dict[str, float]:
    """Size and seconds of a checkpoint of the quickstart at its default settings, and its share of training time."""
    directory = place / "quickstart"
    arguments = ["experiment=quickstart", "evaluation.final_episodes=0", "figures=false", "progress_bar=false"]
    finish(start([*arguments, *overrides, f"output_dir={directory}"], place / "cost.log"), place / "cost.log")
    summary = json.loads((directory / "summary.json").read_text())
    newest_content = load_checkpoint(in_order(directory / "checkpoints")[-1])
    checkpoints = summary["frame"] // newest_content[KEY]["config"]["checkpoint"]["every_n_frames"]
    return {
        "megabytes": in_order(directory / "checkpoints")[-1].stat().st_size / 1e6,
        "checkpoints": checkpoints,
        "seconds_each": summary["checkpoint_seconds"] / checkpoints,
        "training_seconds": summary["training_seconds"],
        "share_of_training_percent": 100 * summary["checkpoint_seconds"] / summary["training_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survival", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many times the run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--output", type=Path, default=Path("runs/survival.json"), help="where the outcome goes")
    given = parser.parse_args()
    begin, begun_at = time.perf_counter(), commit()
    with tempfile.TemporaryDirectory() as place:
        outcome = survive(Path(place), given.kills, given.seed, lambda text: print(text, flush=True))
        outcome["seconds"] = round(time.perf_counter() - begin)
        print("timing checkpoints of experiment=quickstart", flush=True)
        outcome["checkpoint"] = checkpoint_cost(Path(place))
    command = " ".join(["python -m benchmarks.survival", *sys.argv[1:]])
    text = json.dumps({"command": command, "commit": begun_at, **outcome}, indent=2)
    write_atomically(given.output, text + "\n")
    print(text)
    if not all(outcome["identical"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
