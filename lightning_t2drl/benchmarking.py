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
from lightning_t2drl.config import BenchmarkConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.reporting.comparison import draw_comparison, write_tables

ROOT = Path(__file__).resolve().parents[1]
SEARCHING = ("genetic",)  # allocators that take a tenth of a second per slot


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation, or one evaluation of a fixed pair."""

    scheme: str
    value: float | None
    seed: int | None
    command: tuple[str, ...]
    result: Path


def run_suite(config: BenchmarkConfig, raw: DictConfig, overrides: list[str]) -> pd.DataFrame:
    """Run what is not finished, then write `results.csv`, `table.md`, `README.md` and figures.

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
    done = Parallel(n_jobs=config.workers, backend="threading", return_as="generator_unordered")(
        delayed(execute)(job) for job in todo
    )
    for number, (job, failure) in enumerate(done, 1):
        if failure:
            raise UserError(f"suite.{config.suite.name}: {describe(job)} failed: {failure}")
        console.print(f"{number}/{len(todo)} {describe(job)}")
    results = collect(jobs)
    directory = Path(config.output_dir) / f"{config.suite.name}-{config.budget}"
    directory.mkdir(parents=True, exist_ok=True)
    results.to_csv(directory / "results.csv", index=False)
    command = "python benchmark.py " + " ".join(overrides)
    write_tables(results, config.suite, directory, _provenance(config, command))
    draw_comparison(results, config.suite, directory)
    console.print((directory / "README.md").read_text())
    return results


def make_jobs(config: BenchmarkConfig) -> list[Job]:
    """All jobs of a suite: learners once per seed, fixed schemes once."""
    suite, budget = config.suite, config.budget
    one_of("suite", suite, reference=tuple(suite.fixed), best=tuple(suite.fixed))
    jobs = []
    values: list[float | None] = [*suite.values] or [None]
    for value in values:
        swept = [] if value is None else [f"{suite.sweep}={value:g}"]
        place = Path(config.work_dir) / f"{suite.name}-{budget}" / ("all" if value is None else f"{value:g}")
        for scheme, pair in suite.fixed.items():
            if len(pair) != 2:
                raise UserError(f"suite.fixed.{scheme}: {pair} is not [cacher, allocator]")
            cacher, allocator = pair
            episodes = suite.amount("slow_episodes" if allocator in SEARCHING else "episodes", budget)
            result = place / f"{scheme}.json"
            own = [s for s in swept if s.startswith("env.")]
            command = ["evaluate.py", f"env={suite.env}", f"cacher={cacher}", f"allocator={allocator}", *own]
            command += [f"episodes={episodes}", f"output={result}", "progress_bar=false"]
            jobs.append(Job(scheme, value, None, tuple(command), result))
        for scheme, experiment in suite.learners.items():
            for seed in range(suite.amount("seeds", budget)):
                directory = place / f"{scheme}-seed{seed}"
                command = ["train.py", f"experiment={experiment}", f"env={suite.env}", "env.num_envs=16", *swept]
                command += [f"seed={seed}", f"frames={suite.amount('frames', budget)}", f"output_dir={directory}"]
                command += [
                    f"evaluation.final_episodes={suite.amount('episodes', budget)}",
                    "evaluation.every_n_frames=0",
                ]
                command += ["progress_bar=false", "figures=false"]
                jobs.append(Job(scheme, value, seed, tuple(command), directory / "evaluation.json"))
    return jobs


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


def collect(jobs: list[Job]) -> pd.DataFrame:
    """One row per job with the evaluation's means."""
    rows = []
    for job in jobs:
        stored = json.loads(job.result.read_text())
        means = {key: entry["mean"] for key, entry in stored["schemes"][stored["name"]].items()}
        row: dict[str, Any] = {
            "scheme": job.scheme,
            "value": job.value,
            "seed": job.seed,
            "episodes": stored["episodes"],
        }
        summary = job.result.with_name("summary.json")
        if job.seed is not None and summary.exists():
            row["training_seconds"] = json.loads(summary.read_text())["training_seconds"]
        rows.append(row | means)
    return pd.DataFrame(rows)


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
        f"the same worlds for all schemes "
        f"({suite.amount('slow_episodes', budget)} on other worlds for {', '.join(SEARCHING)})",
    ]
