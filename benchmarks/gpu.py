"""Where a GPU pays: worlds, updates and training frames on it and on one CPU thread beside it.

    python -m benchmarks.gpu [--seconds 3] [--output runs/gpu | --publish]

Needs a CUDA device. Every figure is the median of at least five turns, with the GPU waited for at the end of each.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.measure import Advance, Job, Spread, interleave
from benchmarks.report import Section
from benchmarks.subjects import Play, allocator, filled_replay, transitions, update_job
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import prepare_process, run
from lightning_t2drl.system import load_scenario

DEVICES = ("cpu", "cuda")
WORLDS = (16, 256, 4096, 65536)
BATCHES = (64, 1024, 16384)
FEW = 4096  # worlds, and rows of a batch: more of them take a CPU thread seconds
FRAMES = {16: 30, 256: 30, FEW: 20}  # of a run, by its worlds


def waited(job: Job) -> Job:
    """A job whose end is the GPU's."""

    def go() -> None:
        job()
        torch.cuda.synchronize()

    return go


def environment(seconds: float, advance: Advance) -> Section:
    scenario, jobs = load_scenario("paper"), {}
    for device in DEVICES:
        for worlds in WORLDS if device == "cuda" else [n for n in WORLDS if n <= FEW]:
            jobs[worlds, device] = waited(Play(scenario, worlds, device).step)
    for worlds in WORLDS:
        compiled = Play(scenario, worlds, "cuda")
        compiled.env.compile()
        jobs[worlds, "cuda, compiled"] = waited(compiled.step)
    timings = interleave(jobs, seconds * len(jobs), advance=advance)
    rows = [
        {"worlds": n, "on": on, "slots per second": Spread.of(n / times), "ms per call": Spread.of(times * 1e3)}
        for (n, on), times in sorted(timings.items())
    ]
    return Section("Slots", "env=paper, random caches and allocations", rows)


def updates(seconds: float, advance: Advance) -> Section:
    scenario, jobs = load_scenario("paper"), {}
    for name in ("d3pg", "d3pg_paper"):
        for device in DEVICES:
            policy = allocator(name, scenario, "actor_warmup=0")  # as it is once the actor has begun to learn
            batches = transitions(policy, scenario, max(BATCHES))
            policy.to(device)
            replay = filled_replay(batches, device)
            for size in BATCHES if device == "cuda" else [b for b in BATCHES if b <= FEW]:
                jobs[name, size, device] = waited(update_job(policy, replay, size))
    timings = interleave(jobs, seconds * len(jobs), advance=advance)
    rows = [
        {"allocator": name, "batch": b, "on": on, "ms": Spread.of(times * 1e3), "rows per second": Spread.of(b / times)}
        for (name, b, on), times in sorted(timings.items())
    ]
    return Section("Updates", "sample, critics, actor; networks as configured", rows)


def training() -> Section:
    """Real runs: slots per second of the frames in which everything learns."""
    kinds = {"cpu": ["trainer=cpu"], "cuda": ["trainer=gpu"]}
    kinds["cuda, bf16"] = [*kinds["cuda"], "trainer.precision=bf16-mixed"]
    rows = []
    for worlds, batch in ((16, 64), (256, 64), (256, 1024), (FEW, 64), (FEW, 4 * FEW)):
        for on, words in kinds.items():
            if on == "cpu" and batch > FEW:
                continue
            sizes = [f"env.num_envs={worlds}", f"loop.slot_batch_size={batch}", f"frames={FRAMES[worlds]}"]
            speed = slots_per_second([*words, *sizes])
            each = {"slots per second": round(speed), "ms per slot of all worlds": 1e3 * worlds / speed}
            rows.append({"worlds": worlds, "batch": batch, "on": on, **each})
    note = "An update follows every slot of all worlds, however many they are."
    return Section("Training", "experiment=t2drl, the last ten frames of a run", rows, [note])


def slots_per_second(words: list[str]) -> float:
    """Of the last ten frames of a run, in which everything learns."""
    off = ["evaluation.every_n_frames=0", "evaluation.final_episodes=0", "evaluation.diagnosis=false", "figures=false"]
    early = ["allocator.actor_warmup=0", "loop.log_every_n_frames=10", "progress_bar=false"]
    with tempfile.TemporaryDirectory() as directory:
        run("train", ["experiment=t2drl", *words, *off, *early, f"output_dir={directory}"])
        with open(Path(directory) / "metrics.csv") as file:
            return [float(row["slots_per_second"]) for row in csv.DictReader(file)][-1]


def main(arguments: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="directory; default %(default)s")
    parser.add_argument("--publish", dest="output", action="store_const", const=Path("results/gpu"))
    parsed = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu: there is no CUDA device here")
    torch.set_num_threads(1)
    prepare_process()
    say: Advance = lambda done: print(f"\r{done:4.0%}", end="", file=sys.stderr)  # noqa: E731
    sections = {
        "slots": environment(parsed.seconds, say),
        "updates": updates(parsed.seconds, say),
        "training": training(),
    }
    origin = report.provenance(f"python -m benchmarks.gpu --seconds {parsed.seconds:g}")
    return report.write(parsed.output, origin | {"gpu": torch.cuda.get_device_name()}, sections, "Speed on a GPU")


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
