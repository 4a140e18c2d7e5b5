"""Trains the quickstart in both precisions over seeds and says whether they differ by more than the seeds do.

    python -m benchmarks.precision [--frames N] [--seeds 3] [--workers 2]

Finished runs in `--work-dir` are not repeated, interrupted ones go on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.compose import compose
from lightning_t2drl.suite.benchmark import commit
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

REFERENCE, MIXED = PRECISIONS = ("32-true", "bf16-mixed")
METRICS = {"total_utility": "total utility", "hit_ratio": "model hit ratio"}


@dataclass(frozen=True)
class Comparison:
    """One metric over seeds in both precisions.

    `spread` is the distance between the best and the worst seed of the reference precision.
    """

    metric: str
    reference: list[float]
    mixed: list[float]
    difference: float
    spread: float
    inside: bool


def compare(metric: str, reference: list[float], mixed: list[float]) -> Comparison:
    """Whether the means over seeds differ by no more than the seeds of the reference do among themselves."""
    difference = statistics.fmean(mixed) - statistics.fmean(reference)
    spread = max(reference) - min(reference)
    return Comparison(metric, reference, mixed, difference, spread, abs(difference) <= spread)


def run(directory: Path, precision: str, seed: int, frames: int) -> dict[str, float]:
    """One quickstart in a process of its own; what its final evaluation found.

    Raises:
        RuntimeError: it failed; with its last line.
    """
    result = directory / "summary.json"
    if not result.exists():
        directory.mkdir(parents=True, exist_ok=True)
        arguments = [f"seed={seed}", f"frames={frames}", f"trainer.precision={precision}", f"output_dir={directory}"]
        arguments += ["experiment=quickstart", "resume=auto", "figures=false", "progress_bar=false"]
        command = [sys.executable, str(CONFIG_ROOT.parent / "train.py"), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{precision}, seed {seed}: {ended.stderr.strip().splitlines()[-1]}")
    return json.loads(result.read_text())


def table(comparisons: list[Comparison]) -> str:
    """Markdown: per precision mean and every seed, then the difference beside the spread."""
    lines = ["| metric | precision | mean | seeds |", "| --- | --- | --- | --- |"]
    for c in comparisons:
        for precision, values in ((REFERENCE, c.reference), (MIXED, c.mixed)):
            seeds = ", ".join(f"{value:.4f}" for value in values)
            lines.append(f"| {METRICS[c.metric]} | {precision} | {statistics.fmean(values):.4f} | {seeds} |")
    for c in comparisons:
        verdict = "inside" if c.inside else "outside"
        lines += ["", f"{METRICS[c.metric]}: {MIXED} minus {REFERENCE} is {c.difference:+.4f}, {verdict} the spread of"]
        lines[-1] += f" {c.spread:.4f} between seeds of {REFERENCE}"
    return "\n".join(lines)


def main() -> None:
    default = int(compose("train", ["experiment=quickstart"]).config.frames)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--frames", type=int, default=default, help="length of a run; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="from 0; default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side; default %(default)s")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/precision"), help="default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/precision.json"), help="default %(default)s")
    given = parser.parse_args()
    begun_at = commit()
    jobs = [(precision, seed) for seed in range(given.seeds) for precision in PRECISIONS]
    with ThreadPoolExecutor(given.workers) as pool:
        found = pool.map(
            lambda job: run(given.work_dir / begun_at / f"{given.frames}-{job[0]}-{job[1]}", *job, given.frames), jobs
        )
        results = dict(zip(jobs, found, strict=True))
    comparisons = [
        compare(
            metric, *([results[precision, seed][metric] for seed in range(given.seeds)] for precision in PRECISIONS)
        )
        for metric in METRICS
    ]
    command = " ".join(["python -m benchmarks.precision", *sys.argv[1:]])
    content = {
        "command": command,
        "commit": begun_at,
        "frames": given.frames,
        "comparisons": [asdict(c) for c in comparisons],
    }
    write_atomically(given.output, json.dumps(content, indent=2) + "\n")
    print(table(comparisons))


if __name__ == "__main__":
    main()
