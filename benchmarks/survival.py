"""Kills runs of every kind in every phase, goes on each time, and compares the end with an untouched run, bit for bit.

    python -m benchmarks.survival --kills 100

Each kill is a timer's signal, which nothing handles: it ends the process as SIGKILL does, a drawn time after a certain
function was called the n-th time. Also prints what a checkpoint costs at the default settings of the quickstart.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import socket
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
from lightning_t2drl.loop.checkpoints import BEST, frame_of, in_order, load_checkpoint
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.run.cli import main as run_command
from lightning_t2drl.suite.benchmark import commit

# Every run is a fork of one process that has paid for the imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.survival", "lightning_t2drl.run.training", "lightning_t2drl.run.compose"])

RUN = [
    "experiment=quickstart", "seed=5", "env.num_envs=4", "env.frames_per_episode=2", "env.slots_per_frame=3",
    "loop.slot_warmup=12", "loop.frame_warmup=4", "loop.slot_batch_size=8", "loop.frame_batch_size=8",
    "loop.slot_capacity=200", "loop.log_every_n_frames=1", "checkpoint.every_n_frames=1", "evaluation.every_n_frames=4",
    "evaluation.episodes=2", "evaluation.final_episodes=2", "evaluation.diagnosis=false", "progress_bar=false",
    "figures=false",
]  # fmt: skip

# What a kill is aimed at: the function after whose call it comes, and the longest it waits then, in seconds.
PHASES: dict[str, tuple[str, float]] = {
    "starting": ("lightning_t2drl.run.train:train", 1.0),
    "resuming": ("lightning_t2drl.run.train:prepare", 0.01),
    "playing": ("lightning_t2drl.loop.two_timescale:TwoTimescaleModule.training_step", 0.03),
    "saving": ("lightning_t2drl.loop.checkpoints:AtomicCheckpointIO.save_checkpoint", 0.02),
    "best": ("lightning_t2drl.callbacks.checkpoint:link_atomically", 0.002),
    "evaluating": ("lightning_t2drl.run.finish:compare", 0.1),
    "drawing": ("lightning_t2drl.run.finish:draw_run", 0.1),
    "finishing": ("lightning_t2drl.run.finish:in_order", 0.003),
}
# The same of a suite's own bookkeeping.
SUITE_PHASES: dict[str, tuple[str, float]] = {
    "running a job": ("lightning_t2drl.suite.benchmark:execute", 1.0),
    "marking a job done": ("lightning_t2drl.suite.benchmark:as_json", 0.001),
    "collecting": ("lightning_t2drl.suite.benchmark:collect", 0.02),
    "drawing its figure": ("lightning_t2drl.suite.benchmark:draw_comparison", 0.3),
    "writing the page": ("lightning_t2drl.suite.benchmark:write_tables", 0.02),
}
FRAMES_PER_ROUND = 8  # a run is lengthened by so much after a kill in every phase
SEVERAL, COMPILED, SUITE = "two processes", "compiled", "suite"

KINDS: dict[str, list[str]] = {
    "set networks": [],
    "MLPs": ["experiment=t2drl_paper"],
    "knapsack": ["cacher=knapsack"],
    "single timescale": ["experiment=single_timescale"],
    SEVERAL: ["trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=1"],
    COMPILED: ["compile=true"],
    SUITE: [],
}

SUITE_RUN = [
    "suite=headline", "suite.gather=[]", "+suite.fixed.lru=[lru, equal]", "~suite.fixed.oracle", "~suite.fixed.schrs",
    "~suite.fixed.popular_exact", "suite.best=lru",
    "suite.seeds_small=2", "suite.frames_small=4", "suite.episodes_small=2", "~suite.learners.t2drl_ddpg",
    f"suite.learners.t2drl.overrides={[word for word in RUN if word.startswith(('env.', 'loop.'))]}",
    "hydra/launcher=basic",
]  # fmt: skip

PLACES = ("devices", "num_nodes", "strategy")  # where the same processes run

PARTS = {  # part of a checkpoint: where it is
    "parameters": ("state_dict",),
    "optimizers": ("optimizer_states", "lr_schedulers"),
    "replay buffers": ("replay",),
    "environment": ("env",),
    "generators and memories of policies": ("policies", "global_rng"),
}


# -- runs


@dataclass(frozen=True)
class Aim:
    """When a process is to die: `wait` seconds after the `count`-th call of the function that a phase begins with."""

    phase: str
    count: int
    wait: float


def start(
    arguments: list[str], log: Path, aim: Aim | None = None, command: str = "train", **environment: str
) -> multiprocessing.process.BaseProcess:
    """`t2drl train`, or another command, in a process of its own, its output appended to `log`."""
    process = CONTEXT.Process(target=_run, args=(command, arguments, log, aim, environment))
    process.start()
    return process


def _run(command: str, arguments: list[str], log: Path, aim: Aim | None, environment: dict[str, str]) -> None:
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # as in any other process; a fork server's child has its own
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = [f"{command}.py", *arguments]
    if aim is not None:
        _take(aim)
    run_command([command, *arguments])


def _take(aim: Aim) -> None:
    """Let a timer end this process as it is aimed."""
    if aim.phase == "starting":
        signal.setitimer(signal.ITIMER_REAL, aim.wait)
        return
    module, _, path = (PHASES | SUITE_PHASES)[aim.phase][0].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == aim.count:
            signal.setitimer(signal.ITIMER_REAL, aim.wait)
        return real(*args, **kwargs)

    setattr(owner, name, call)


def finish(process: multiprocessing.process.BaseProcess, log: Path) -> None:
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the run ended with status {process.exitcode}:\n{log.read_text()[-2000:]}")


# -- kills


def newest(directory: Path) -> int:
    """Frame of the newest checkpoint, 0 where there is none."""
    return max((frame_of(path) for path in in_order(directory / "checkpoints")), default=0)


def session(arguments: list[str], log: Path, aim: Aim | None, ranks: int) -> bool:
    """One attempt at a run, by as many processes as it has ranks; whether it was killed.

    Raises:
        RuntimeError: it ended by itself, and not well.
    """
    processes = [start(arguments, log, aim, **_place(ranks, 0))]
    processes += [start(arguments, log, None, **_place(ranks, rank)) for rank in range(1, ranks)]
    processes[0].join()
    killed = processes[0].exitcode == -signal.SIGALRM
    for process in processes[1:]:
        if killed:
            process.kill()
        process.join()
    if not killed:
        for process in processes:
            finish(process, log)
    return killed


def _place(ranks: int, rank: int) -> dict[str, str]:
    """What torchrun would tell a process, here one of several nodes with one process each."""
    if ranks == 1:
        return {}
    global _port
    if rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            _port = free.getsockname()[1]
    return {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port),
            "WORLD_SIZE": str(ranks), "RANK": str(rank), "GROUP_RANK": str(rank), "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1"}  # fmt: skip


_port = 0


def survive(
    place: Path, kind: str, kills: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Kill a run `kills` times, let it end, and compare it with one that was left alone.

    The run goes in rounds. In each it becomes longer and is killed once in every phase, so that it also ends, is
    lengthened, and is killed at its end, several times.

    Args:
        place: an existing directory for both runs and their output.
        kind: of run, among `KINDS`.
        kills: how many.
        seed: of the instants.
        say: told of every kill.

    Returns:
        Number of kills by phase, damaged checkpoints met, and by part whether both runs are identical.
    """
    rng = random.Random(f"{seed} {kind}")
    ranks = 2 if kind == SEVERAL else 1
    rounds = -(-kills // len(PHASES)) + 1  # one to spare, as not every phase comes in every round
    total = FRAMES_PER_ROUND * rounds
    arguments = [*RUN, *KINDS[kind], "figures=true", f"schedule_frames={total}"]
    whole, killed, log = place / "whole", place / "killed", place / "killed.log"
    session([*arguments, f"frames={total}", f"output_dir={whole}"], place / "whole.log", None, ranks)
    done: dict[str, int] = dict.fromkeys(PHASES, 0)
    for number in range(1, rounds + 1):
        here = [*arguments, f"frames={FRAMES_PER_ROUND * number}", f"output_dir={killed}", "resume=auto"]
        for phase, (_, longest) in PHASES.items():
            if sum(done.values()) == kills:
                break
            aim = Aim(phase, rng.randint(1, 2) if phase in ("playing", "saving") else 1, rng.uniform(1e-6, longest))
            died = session(here, log, aim, ranks)
            done[phase] += died
            what = "killed" if died else "ended before"
            say(f"{kind}, {sum(done.values())} of {kills}: {what} {phase} at frame {newest(killed)}")
    session([*arguments, f"frames={total}", f"output_dir={killed}", "resume=auto"], log, None, ranks)
    return {
        "kills": sum(done.values()),
        "by_phase": done,
        "frames": total,
        "damaged_checkpoints": log.read_text().count("set aside:"),
        "identical": compare(whole, killed),
    }


def survive_suite(place: Path, kills: int, seed: int, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Kill a suite `kills` times, once in every phase before it is begun anew, and compare its tables."""
    rng = random.Random(f"{seed} {SUITE}")
    done: dict[str, int] = dict.fromkeys(SUITE_PHASES, 0)
    identical: dict[str, bool] = {}

    def session(directory: Path, aim: Aim | None) -> bool:
        process = start([*SUITE_RUN, f"output_dir={directory}"], place / "log", aim, "benchmark")
        process.join()
        if process.exitcode == -signal.SIGALRM:
            return True
        finish(process, place / "log")
        return False

    session(place / "whole", None)
    for number in itertools.count(1):
        killed = place / f"killed-{number}"
        for phase, (_, longest) in SUITE_PHASES.items():
            if sum(done.values()) == kills:
                break
            jobs = phase in ("running a job", "marking a job done")
            died = session(killed, Aim(phase, rng.randint(1, 3) if jobs else 1, rng.uniform(1e-6, longest)))
            done[phase] += died
            say(f"{SUITE}, {sum(done.values())} of {kills}: {'killed' if died else 'ended before'} {phase}")
        session(killed, None)
        for name, same in compare_suites(place / "whole", killed).items():
            identical[name] = identical.get(name, True) and same
        if sum(done.values()) == kills:
            return {"kills": kills, "by_phase": done, "suites": number, "identical": identical}
    raise AssertionError


# -- comparison


def compare_suites(one: Path, two: Path) -> dict[str, bool]:
    """By file, whether two suites say the same; only seconds and the folder's name may differ."""
    here, there = (directory / "headline-small" for directory in (one, two))
    tables = [pd.read_csv(d / "results.csv", dtype=str).drop(columns="training_seconds") for d in (here, there)]
    pages = [
        re.sub(rf"{re.escape(str(d))}|\| \d+ \|$", "", (d / "headline-small/README.md").read_text(), flags=re.MULTILINE)
        for d in (one, two)
    ]
    out = {"results.csv": tables[0].equals(tables[1]), "README.md": pages[0] == pages[1]}
    out["gains.csv"] = (here / "gains.csv").read_bytes() == (there / "gains.csv").read_bytes()
    names = [sorted(path.name for path in directory.iterdir()) for directory in (here, there)]
    return out | {"files": names[0] == names[1]}


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


def _without_places(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content without what may differ between runs that compute the same."""
    own = content[KEY]
    own.pop("run_id")
    own["config"] = dict(own["config"], trainer=dict(own["config"]["trainer"]))
    for section, key in ((own["config"], "frames"), (own["config"], "output_dir"), (own["config"], "resume"),
                         *((own["config"]["trainer"], key) for key in PLACES)):  # fmt: skip
        section.pop(key)
    return content


def compare(one: Path, two: Path) -> dict[str, bool]:
    """By part, whether two output directories hold the same run; only times and places may differ."""
    contents = [_without_places(load_checkpoint(in_order(d / "checkpoints")[-1])) for d in (one, two)]
    differing = differences(*contents)
    out = {
        part: not any(name in path.split("/") for path in differing for name in names) for part, names in PARTS.items()
    }
    out["the whole checkpoint"] = not differing
    for file in ("metrics.csv", "evaluations.csv"):
        tables = [pd.read_csv(d / file).drop(columns=["run", "slots_per_second"], errors="ignore") for d in (one, two)]
        out[file] = tables[0].equals(tables[1]) and bool(tables[0]["frame"].is_unique)
    out["best checkpoint"] = not differences(
        *(_without_places(load_checkpoint(directory / "checkpoints" / BEST)) for directory in (one, two))
    )
    results = [json.loads((directory / "evaluation.json").read_text()) for directory in (one, two)]
    out["evaluation.json"] = results[0] == results[1]
    names = [sorted(path.name for path in directory.rglob("*.png")) for directory in (one, two)]
    out["figures"] = names[0] == names[1]
    return out


# -- cost


def checkpoint_cost(place: Path, *overrides: str) -> dict[str, float]:
    """Size and seconds of a checkpoint of the quickstart at its default settings, and its share of training time."""
    directory = place / "quickstart"
    arguments = ["experiment=quickstart", "evaluation.final_episodes=0", "figures=false", "progress_bar=false"]
    finish(start([*arguments, *overrides, f"output_dir={directory}"], place / "cost.log"), place / "cost.log")
    summary = json.loads((directory / "summary.json").read_text())
    checkpoints = summary["checkpoints"]
    return {
        "megabytes": in_order(directory / "checkpoints")[-1].stat().st_size / 1e6,
        "checkpoints": checkpoints,
        "seconds_each": summary["checkpoint_seconds"] / checkpoints,
        "training_seconds": summary["training_seconds"],
        "share_of_training_percent": 100 * summary["checkpoint_seconds"] / summary["training_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survival", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many in all")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of runs")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--output", type=Path, default=Path("runs/survival.json"), help="where the outcome goes")
    given = parser.parse_args()
    begin, begun_at = time.perf_counter(), commit()
    outcome: dict[str, Any] = {"kills": 0, "kinds": {}}

    def write() -> str:
        command = " ".join(["python -m benchmarks.survival", *sys.argv[1:]])
        seconds = round(time.perf_counter() - begin)
        text = json.dumps({"command": command, "commit": begun_at, "seconds": seconds, **outcome}, indent=2)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.output, text + "\n")
        return text

    with tempfile.TemporaryDirectory() as directory:
        for kind, share in shares(given.kills, given.kinds).items():
            place = Path(directory) / kind.replace(" ", "-")
            place.mkdir()
            trial = survive_suite if kind == SUITE else functools.partial(survive, kind=kind)
            outcome["kinds"][kind] = trial(
                place, kills=share, seed=given.seed, say=functools.partial(print, flush=True)
            )
            outcome["kills"] += outcome["kinds"][kind]["kills"]
            write()
        print("timing checkpoints of experiment=quickstart", flush=True)
        outcome["checkpoint"] = checkpoint_cost(Path(directory))
    print(write())
    if not all(all(kind["identical"].values()) for kind in outcome["kinds"].values()):
        raise SystemExit(1)


def shares(kills: int, kinds: list[str]) -> dict[str, int]:
    """How many of the kills each kind of run gets: alike, but half for one that compiles anew at every start."""
    weights = {kind: 1 if kind == COMPILED else 2 for kind in kinds}
    out = {kind: kills * weight // sum(weights.values()) for kind, weight in weights.items()}
    out[kinds[0]] += kills - sum(out.values())
    return out


if __name__ == "__main__":
    main()
