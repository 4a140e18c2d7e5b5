"""Schemes x seeds x values on the same held-out worlds, with intervals: what `benchmark.py` does."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lightning_t2drl.checks import one_of
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.cli import compose_config, run, sweep
from lightning_t2drl.run.evaluate import run_evaluation
from lightning_t2drl.run.schemas import BenchmarkConfig, EvaluateConfig, SuiteConfig, TrainConfig, strict
from lightning_t2drl.run.train import train
from lightning_t2drl.suite.comparison import draw_comparison, draw_curves, write_tables

ROOT = Path(__file__).resolve().parents[1]
SEARCHING = ("genetic",)  # allocators that take a tenth of a second per slot
CURVE_POINTS = 10  # evaluations along a learning curve
RESULT = "evaluation.json"
MADE = "commit.txt"  # beside a result: the commit it was made at


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation, or one evaluation of a fixed pair or a checkpoint.

    Args:
        scheme, value, seed: what it is to the suite.
        entry: `train` or `evaluate`.
        overrides: what the entry point is told, beside where results go.
        directory: where results go. Jobs that compute the same share it, in whichever suites they are.
    """

    scheme: str
    value: float | None
    seed: int | None
    entry: str
    overrides: tuple[str, ...]
    directory: Path

    @property
    def result(self) -> Path:
        return self.directory / RESULT

    @property
    def trains(self) -> bool:
        return self.entry == "train"

    def __str__(self) -> str:
        known = {"value": self.value, "seed": self.seed}
        return ", ".join([self.scheme, *(f"{key} {n:g}" for key, n in known.items() if n is not None)])


def run_suite(config: BenchmarkConfig, raw: DictConfig, overrides: list[str]) -> pd.DataFrame | None:
    """Run what is not finished, then write `results.csv`, `README.md`, figures, and learning curves if asked for.

    The jobs are a sweep over `job`, the number of the only one to run, by whichever of Hydra's launchers is asked for.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it; not needed here.
        overrides: the command line, quoted in the report.

    Returns:
        The tidy results, one row per scheme, value and training seed; None if it was for one job only.

    Raises:
        UserError: a job failed; the line says which and how.
    """
    jobs = make_jobs(config)
    if config.job is not None:
        if config.job >= len(jobs):
            raise UserError(f"job: {config.job}; suite {config.suite.name} has the jobs 0 to {len(jobs) - 1}")
        job = jobs[config.job]
        execute(job, config.suite)
        unfinished = {other.directory for other in jobs if not other.result.exists()}
        print(f"{config.suite.name}: {job} finished, {len(unfinished)} to go", flush=True)
        return None
    for name in config.suite.gather:
        chosen = [
            f"suite={name}",
            *(o for o in overrides if not o.startswith(("suite=", "suite.", "+suite.", "~suite."))),
        ]
        part = strict(BenchmarkConfig, compose_config("benchmark", chosen))
        run_suite(part, raw, chosen)
    console = Console()
    for trains in (True, False):  # evaluations may need what was trained
        todo = {job.directory: n for n, job in enumerate(jobs) if job.trains is trains and not job.result.exists()}
        what = "training runs" if trains else "evaluations"
        console.print(f"suite {config.suite.name}, budget {config.budget}: {len(todo)} {what} to go")
        if todo:
            numbers = ",".join(str(n) for n in todo.values())
            sweep("benchmark", BenchmarkConfig, run_suite, [*_launcher(config, overrides), f"job={numbers}"])
    results = collect(jobs, config.suite)
    directory = Path(config.output_dir) / f"{config.suite.name}-{config.budget}"
    directory.mkdir(parents=True, exist_ok=True)
    results.to_csv(directory / "results.csv", index=False)
    curves = collect_curves(jobs) if config.suite.curves else None
    if curves is not None:
        curves.to_csv(directory / "curves.csv", index=False)
        draw_curves(curves, results, config.suite, directory)
    gathered = [directory.with_name(f"{name}-{config.budget}") for name in config.suite.gather]
    command = shlex.join(["python", "benchmark.py", *overrides])
    write_tables(results, config.suite, directory, _provenance(config, jobs, command), gathered)
    draw_comparison(results, config.suite, directory)
    console.print((directory / "README.md").read_text(), markup=False)
    return results


def _launcher(config: BenchmarkConfig, overrides: list[str]) -> list[str]:
    """The command line with a launcher: one process per worker on this machine, unless another is named."""
    if any(o.startswith("hydra/launcher=") for o in overrides):
        return overrides
    return [*overrides, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={config.workers}"]


# -- jobs


def make_jobs(config: BenchmarkConfig) -> list[Job]:
    """All jobs of a suite: learners once per seed, fixed schemes once, each at every value."""
    suite = config.suite
    one_of("suite", suite, reference=tuple(suite.fixed), best=tuple(suite.fixed))
    if suite.transfer and suite.sweep is None:
        raise UserError(
            "suite.transfer: true needs suite.sweep, the key at whose values trained policies are evaluated"
        )
    seeds = range(suite.amount("seeds", config.budget))
    pairs = [(scheme, seed) for scheme in suite.learners for seed in seeds]
    values: list[float | None] = [*suite.values] or [None]
    jobs = [_fixed(config, scheme, value) for value in values for scheme in suite.fixed]
    if suite.transfer:
        trained = [_trained(config, scheme, None, seed) for scheme, seed in pairs]
        return jobs + trained + [_transferred(config, job, value) for value in values for job in trained]
    return jobs + [_trained(config, scheme, value, seed) for value in values for scheme, seed in pairs]


def _swept(suite: SuiteConfig, value: float | None) -> list[str]:
    return [] if value is None else [f"{suite.sweep}={value:g}"]


def _fixed(config: BenchmarkConfig, scheme: str, value: float | None) -> Job:
    suite = config.suite
    if len(suite.fixed[scheme]) != 2:
        raise UserError(f"suite.fixed.{scheme}: {suite.fixed[scheme]} is not [cacher, allocator]")
    cacher, allocator = suite.fixed[scheme]
    episodes = suite.amount("slow_episodes" if allocator in SEARCHING else "episodes", config.budget)
    base = (f"env={suite.env}", f"cacher={cacher}", f"allocator={allocator}")
    changes = [o for o in _swept(suite, value) if o.startswith("env.")]
    return _job(config, scheme, value, None, "evaluate", base, [*changes, f"episodes={episodes}"])


def _trained(config: BenchmarkConfig, scheme: str, value: float | None, seed: int) -> Job:
    suite, budget, learner = config.suite, config.budget, config.suite.learners[scheme]
    frames = round(suite.amount("frames", budget) * learner.length)
    every = max(frames // CURVE_POINTS, 1) if suite.curves else 0
    changes = [*_swept(suite, value), f"seed={seed}", f"frames={frames}", *learner.overrides]
    changes += [f"evaluation.final_episodes={suite.amount('episodes', budget)}", f"evaluation.every_n_frames={every}"]
    base = (f"experiment={learner.experiment}", f"env={suite.env}")
    return _job(config, scheme, value, seed, "train", base, changes)


def _transferred(config: BenchmarkConfig, trained: Job, value: float | None) -> Job:
    """A policy that was trained once, evaluated at one of the values."""
    base = (f"checkpoint={trained.directory / 'checkpoints' / 'last'}",)
    changes = [*_swept(config.suite, value), f"episodes={config.suite.amount('episodes', config.budget)}"]
    return _job(config, trained.scheme, value, trained.seed, "evaluate", base, changes)


def _job(
    config: BenchmarkConfig,
    scheme: str,
    value: float | None,
    seed: int | None,
    entry: str,
    base: tuple[str, ...],
    changes: list[str],
) -> Job:
    """A job in a directory named after what it computes: the base's whole config, and what changes it."""
    name = base[0].partition("=")[2] if entry == "train" else scheme
    try:
        plain = _plain(entry, base)
    except UserError as error:
        raise UserError(f"suite.{config.suite.name}: {scheme}: {error}") from None
    different = sorted(o for o in changes if not _says_nothing(o, plain))
    text = json.dumps([entry, base, plain, different], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    directory = Path(config.work_dir) / f"{name}-{digest}"
    return Job(scheme, value, seed, entry, (*base, *changes), directory)


@functools.cache
def _plain(entry: str, base: tuple[str, ...]) -> Any:
    return OmegaConf.to_container(compose_config(entry, list(base)), resolve=True)


def _says_nothing(override: str, plain: Any) -> bool:
    """Whether an override only repeats what the base config says."""
    parsed = OverridesParser.create().parse_override(override)
    return bool(OmegaConf.select(OmegaConf.create(plain), parsed.key_or_group) == parsed.value())


def execute(job: Job, suite: SuiteConfig) -> None:
    """Run one job in this process, from where it was interrupted if it was.

    Raises:
        UserError: what went wrong with it.
    """
    job.directory.mkdir(parents=True, exist_ok=True)
    overrides = [*job.overrides, "progress_bar=false"]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            if job.trains:
                overrides += [f"output_dir={job.directory}", "resume=auto", "figures=false"]
                run("train", TrainConfig, train, overrides)
            else:
                run("evaluate", EvaluateConfig, run_evaluation, [*overrides, f"output={job.result}"])
    except UserError as error:
        raise UserError(f"suite.{suite.name}: {job} failed: {error}") from None
    write_atomically(job.directory / MADE, commit() + "\n")


def commit() -> str:
    """The commit the code is at, with a + where it is changed since; `unknown` outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "lightning_t2drl", "callbacks", "configs", "benchmarks")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
    except OSError:  # no git here
        return "unknown"


# -- results


def collect(jobs: list[Job], suite: SuiteConfig) -> pd.DataFrame:
    """One row per evaluation with its means, and beside them those of the reference and the best scheme.

    A scheme that searches plays few episodes, which are the first ones of the others (see `evaluate`). Its utility and
    hit ratio are put on the scale of all episodes by what the best scheme reached in these and in all; what it reached
    itself stays as `utility_played`, `hit_ratio_played`.
    """
    stored = {job: json.loads(job.result.read_text()) for job in jobs if not (job.trains and suite.transfer)}
    metrics = {job: content["schemes"][content["name"]] for job, content in stored.items()}
    rows = []
    for job, content in stored.items():
        row: dict[str, Any] = {"scheme": job.scheme, "value": job.value, "seed": job.seed}
        row |= {"episodes": content["episodes"]} | {key: entry["mean"] for key, entry in metrics[job].items()}
        if job.trains:
            row["training_seconds"] = json.loads((job.directory / "summary.json").read_text())["training_seconds"]
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
            curve = pd.read_csv(job.directory / "evaluations.csv")[["frame", "slots", "utility", "hit_ratio"]]
            curve.insert(0, "scheme", job.scheme)
            curve.insert(1, "value", job.value)
            curve.insert(2, "seed", job.seed)
            parts.append(curve)
    return pd.concat(parts, ignore_index=True)


def _provenance(config: BenchmarkConfig, jobs: list[Job], command: str) -> list[str]:
    """Who made this: command, commits, date, machine class, settings."""
    suite, budget = config.suite, config.budget
    commits = sorted({(job.directory / MADE).read_text().strip() for job in jobs})
    return [
        f"- command: `{command}`",
        f"- runs made at commit {', '.join(commits)}; page of {date.today().isoformat()}; {platform.machine()} with "
        f"{os.cpu_count()} cores, Python {platform.python_version()}",
        f"- env={suite.env}; training seeds 0 to {suite.amount('seeds', budget) - 1}, "
        f"{suite.amount('frames', budget)} frames of 16 worlds; {suite.amount('episodes', budget)} held-out episodes, "
        f"the same worlds for all schemes (for {', '.join(SEARCHING)} the first "
        f"{suite.amount('slow_episodes', budget)}, put on the scale of all)",
    ]
