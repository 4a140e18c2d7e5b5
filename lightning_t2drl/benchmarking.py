"""Schemes x seeds x values on the same held-out worlds, with intervals: what `benchmark.py` does."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from omegaconf import DictConfig
from rich.console import Console

from lightning_t2drl.checks import one_of
from lightning_t2drl.config import BenchmarkConfig, SuiteConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.reporting.comparison import draw_comparison, draw_curves, write_tables

ROOT = Path(__file__).resolve().parents[1]
SEARCHING = ("genetic",)  # allocators that take a tenth of a second per slot
CURVE_POINTS = 20  # evaluations along a learning curve


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation, or one evaluation of a fixed pair."""

    scheme: str
    value: float | None
    seed: int | None
    command: tuple[str, ...]
    result: Path
    trains: bool


def run_suite(config: BenchmarkConfig, raw: DictConfig, overrides: list[str]) -> pd.DataFrame:
    """Run what is not finished, then write `results.csv`, `README.md`, figures, and learning curves if asked for.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it; not needed here.
        overrides: the command line, quoted in the report.

    Returns:
        The tidy results, one row per scheme, value and training seed.

    Raises:
        UserError: a job failed; the line says which and how.
    """
    console = Console()
    jobs = make_jobs(config)
    todo = [job for job in jobs if not job.result.exists()]
    console.print(
        f"suite {config.suite.name}, budget {config.budget}: {len(jobs)} jobs, {len(jobs) - len(todo)} finished"
    )
    number = 0
    for stage in (True, False):  # evaluations may need what was trained
        part = [job for job in todo if job.trains is stage]
        done = Parallel(n_jobs=config.workers, backend="threading", return_as="generator_unordered")(
            delayed(execute)(job) for job in part
        )
        for job, failure in done:
            number += 1
            if failure:
                raise UserError(f"suite.{config.suite.name}: {describe(job)} failed: {failure}")
            console.print(f"{number}/{len(todo)} {describe(job)}")
    results = collect(jobs, config.suite)
    directory = Path(config.output_dir) / f"{config.suite.name}-{config.budget}"
    directory.mkdir(parents=True, exist_ok=True)
    results.to_csv(directory / "results.csv", index=False)
    command = "python benchmark.py " + " ".join(overrides)
    curves = collect_curves(jobs) if config.suite.curves else None
    if curves is not None:
        curves.to_csv(directory / "curves.csv", index=False)
        draw_curves(curves, results, config.suite, directory)
    write_tables(results, config.suite, directory, _provenance(config, command))
    draw_comparison(results, config.suite, directory)
    console.print((directory / "README.md").read_text())
    return results


def make_jobs(config: BenchmarkConfig) -> list[Job]:
    """All jobs of a suite: learners once per seed, fixed schemes once, each at every value."""
    suite = config.suite
    one_of("suite", suite, reference=tuple(suite.fixed), best=tuple(suite.fixed))
    if suite.transfer and suite.sweep is None:
        raise UserError(
            "suite.transfer: true needs suite.sweep, the key at whose values trained policies are evaluated"
        )
    root = Path(config.work_dir) / f"{suite.name}-{config.budget}"
    jobs = []
    values: list[float | None] = [*suite.values] or [None]
    for value in values:
        swept = [] if value is None else [f"{suite.sweep}={value:g}"]
        place = root / ("all" if value is None else f"{value:g}")
        jobs += [_fixed(config, scheme, value, swept, place) for scheme in suite.fixed]
        for scheme in suite.learners:
            for seed in range(suite.amount("seeds", config.budget)):
                if suite.transfer:
                    jobs.append(_transferred(config, scheme, value, seed, swept, place, root))
                else:
                    jobs.append(_trained(config, scheme, value, seed, swept, place))
    if suite.transfer:
        seeds = range(suite.amount("seeds", config.budget))
        jobs += [_trained(config, scheme, None, seed, [], root) for scheme in suite.learners for seed in seeds]
    return jobs


def _fixed(config: BenchmarkConfig, scheme: str, value: float | None, swept: list[str], place: Path) -> Job:
    suite, result = config.suite, place / f"{scheme}.json"
    if len(suite.fixed[scheme]) != 2:
        raise UserError(f"suite.fixed.{scheme}: {suite.fixed[scheme]} is not [cacher, allocator]")
    cacher, allocator = suite.fixed[scheme]
    episodes = suite.amount("slow_episodes" if allocator in SEARCHING else "episodes", config.budget)
    own = [s for s in swept if s.startswith("env.")]
    command = ["evaluate.py", f"env={suite.env}", f"cacher={cacher}", f"allocator={allocator}", *own]
    command += [f"episodes={episodes}", f"output={result}", "progress_bar=false"]
    return Job(scheme, value, None, tuple(command), result, trains=False)


def _trained(
    config: BenchmarkConfig, scheme: str, value: float | None, seed: int, swept: list[str], place: Path
) -> Job:
    suite, budget, learner = config.suite, config.budget, config.suite.learners[scheme]
    frames = round(suite.amount("frames", budget) * learner.length)
    every = max(frames // CURVE_POINTS, 1) if suite.curves else 0
    directory = place / f"{scheme}-seed{seed}"
    command = ["train.py", f"experiment={learner.experiment}", f"env={suite.env}", "env.num_envs=16", *swept]
    command += [f"seed={seed}", f"frames={frames}", f"output_dir={directory}"]
    command += [f"evaluation.final_episodes={suite.amount('episodes', budget)}", f"evaluation.every_n_frames={every}"]
    command += ["progress_bar=false", "figures=false", *learner.overrides]
    return Job(scheme, value, seed, tuple(command), directory / "evaluation.json", trains=True)


def _transferred(
    config: BenchmarkConfig, scheme: str, value: float | None, seed: int, swept: list[str], place: Path, root: Path
) -> Job:
    """A policy that was trained once, evaluated at one of the values."""
    result = place / f"{scheme}-seed{seed}.json"
    command = ["evaluate.py", f"checkpoint={root / f'{scheme}-seed{seed}' / 'checkpoints' / 'last'}", *swept]
    command += [f"episodes={config.suite.amount('episodes', config.budget)}", f"output={result}", "progress_bar=false"]
    return Job(scheme, value, seed, tuple(command), result, trains=False)


def execute(job: Job) -> tuple[Job, str | None]:
    """Run one job in a process of its own; the reason if it failed."""
    job.result.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / job.command[0]), *job.command[1:]]
    if list(job.result.parent.glob("checkpoints/frame=*.ckpt")):
        command.append("resume=auto")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode == 0 and job.result.exists():
        return job, None
    lines = finished.stderr.strip().splitlines()
    return job, lines[-1] if lines else f"exit status {finished.returncode}"


def describe(job: Job) -> str:
    parts = [job.scheme] + [f"{name} {v}" for name, v in (("value", job.value), ("seed", job.seed)) if v is not None]
    return ", ".join(parts)


def collect(jobs: list[Job], suite: SuiteConfig) -> pd.DataFrame:
    """One row per evaluation with its means, and beside them those of the reference and the best scheme.

    A scheme that searches plays few episodes, which are the first ones of the others (see `evaluate`). Its utility and
    hit ratio are put on the scale of all episodes by what the best scheme reached in these and in all; what it reached
    itself stays as `utility_played`, `hit_ratio_played`.
    """
    stored = {job: json.loads(job.result.read_text()) for job in jobs if job.trains is False or not suite.transfer}
    metrics = {job: content["schemes"][content["name"]] for job, content in stored.items()}
    rows = []
    for job, content in stored.items():
        row: dict[str, Any] = {"scheme": job.scheme, "value": job.value, "seed": job.seed}
        row |= {"episodes": content["episodes"]} | {key: entry["mean"] for key, entry in metrics[job].items()}
        summary = job.result.with_name("summary.json")
        if job.trains and summary.exists():
            row["training_seconds"] = json.loads(summary.read_text())["training_seconds"]
        reference, best = (
            metrics[next(j for j in stored if j.scheme == scheme and j.value == job.value)]
            for scheme in (suite.reference, suite.best)
        )
        for key in ("utility", "hit_ratio"):
            same = best[key]["episodes"][: content["episodes"]]
            row[f"{key}_played"] = row[key]
            row[key] *= best[key]["mean"] / (sum(same) / len(same))
            row |= {f"reference_{key}": reference[key]["mean"], f"best_{key}": best[key]["mean"]}
        rows.append(row)
    return pd.DataFrame(rows)


def collect_curves(jobs: list[Job]) -> pd.DataFrame:
    """The learners' evaluations during training, one row per scheme, value, seed and frame."""
    parts = []
    for job in jobs:
        if job.trains:
            curve = pd.read_csv(job.result.with_name("evaluations.csv"))[["frame", "slots", "utility", "hit_ratio"]]
            curve.insert(0, "scheme", job.scheme)
            curve.insert(1, "value", job.value)
            curve.insert(2, "seed", job.seed)
            parts.append(curve)
    return pd.concat(parts, ignore_index=True)


def _provenance(config: BenchmarkConfig, command: str) -> list[str]:
    """Who made this: command, commit, date, machine class, settings."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    suite, budget = config.suite, config.budget
    return [
        f"- command: `{command}`",
        f"- commit {git.stdout.strip() or 'unknown'}, {date.today().isoformat()}, {platform.machine()} with "
        f"{os.cpu_count()} cores, Python {platform.python_version()}",
        f"- env={suite.env}; training seeds 0 to {suite.amount('seeds', budget) - 1}, "
        f"{suite.amount('frames', budget)} frames of 16 worlds; {suite.amount('episodes', budget)} held-out episodes, "
        f"the same worlds for all schemes (for {', '.join(SEARCHING)} the first "
        f"{suite.amount('slow_episodes', budget)}, put on the scale of all)",
    ]
