"""Schemes x seeds x values on the same held-out worlds, with intervals: what `t2drl benchmark` does."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_t2drl.building import build_policies
from lightning_t2drl.checks import one_of
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import as_json, remove_leftovers, write_atomically
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.compose import Composed, compose
from lightning_t2drl.run.evaluate import RESULT, play
from lightning_t2drl.run.overrides import quote, read
from lightning_t2drl.run.schemas import BenchmarkConfig, SuiteConfig
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.sweep import launch
from lightning_t2drl.suite.comparison import comparison_table, draw_comparison, draw_curves, many, shown, write_tables

ROOT = Path(__file__).resolve().parents[2]
SEARCHING = ("genetic",)  # allocators that take a tenth of a second per slot
CURVE_POINTS = 10  # evaluations along a learning curve
DONE = "job.json"  # what a finished job found and the commit it was made at; its one rename makes the job finished
ALONE = "references=[]"  # a suite has references of its own
JOBS = "jobs"  # folder of output_dir that the jobs are in
PUBLISHED = Path("results")

Value = float | str | None  # of a sweep: a number, or the name of some words


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation, or one evaluation of a fixed pair or a checkpoint.

    Args:
        scheme, value, seed: its place in the suite.
        command: `train` or `evaluate`.
        words: of the command, without the directory of the results.
        directory: where results go. Jobs that compute the same share it, in whichever suites they are.
    """

    scheme: str
    value: Value
    seed: int | None
    command: str
    words: tuple[str, ...]
    directory: Path

    @property
    def done(self) -> bool:
        return (self.directory / DONE).exists()

    @property
    def trains(self) -> bool:
        return self.command == "train"

    def found(self) -> dict[str, Any]:
        """`commit`, `evaluation` and, of a training run, `training_seconds`."""
        return json.loads((self.directory / DONE).read_text())

    def __str__(self) -> str:
        known = {"value": self.value, "seed": self.seed}
        return ", ".join([self.scheme, *(f"{key} {shown(n)}" for key, n in known.items() if n is not None)])


@dataclass(frozen=True)
class Comparison:
    """What a suite found.

    Args:
        name: of the suite.
        results: one row per scheme, value and training seed.
        output_dir: where its page, tables and figures are.
    """

    name: str
    results: pd.DataFrame
    output_dir: Path


def run_suite(composed: Composed) -> Comparison:
    """Run what is not finished, then write `results.csv`, `README.md`, figures, and learning curves if asked for.

    Jobs run in `workers` processes on this machine, or as the words on `hydra/launcher` say.

    Raises:
        UserError: a training run is impossible as it is configured, and none has begun; or a job failed, the first that
            did, and the others have run. The line says which and how.
    """
    config: BenchmarkConfig = composed.config
    suite, launcher, screen = config.suite, composed.launcher, console()
    given = read(composed.arguments)
    flags = [f"--config-dir={directory}" for directory in given.config_dirs]
    jobs = make_jobs(config, flags)
    _refuse_impossible(suite.name, [job for job in jobs if job.trains and not job.done])
    for name in _gathered(config):
        others = [word for word in given.overrides if not word.lstrip("+~").startswith(("suite=", "suite."))]
        run_suite(compose("benchmark", [*flags, f"suite={name}", *others]))
    for trains in (True, False):  # evaluations may need what was trained
        todo = list({job.directory: job for job in jobs if job.trains is trains and not job.done}.values())
        what = "training runs" if trains else "evaluations"
        screen.print(f"suite {suite.name}, budget {config.budget}: {len(todo)} {what} to go")
        if todo:
            here = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={config.workers}"]
            named = any(word.startswith("hydra/launcher=") for word in launcher)
            task = partial(_numbered, suite.name, todo)
            failures = [o for o in launch(task, len(todo), launcher if named else [*here, *launcher]) if o is not None]
            if failures:
                raise failures[0]
    directory = (PUBLISHED if config.publish else Path(config.output_dir)) / f"{suite.name}-{config.budget}"
    results = report(config, jobs, directory, shlex.join(["t2drl", "benchmark", *composed.arguments]))
    screen.print(comparison_table(results, suite), soft_wrap=False)
    screen.print(f"written to {directory}; README.md there has the intervals")
    return Comparison(suite.name, results, directory)


def report(config: BenchmarkConfig, jobs: Sequence[Job], directory: Path, command: str) -> pd.DataFrame:
    """Write what finished jobs found: CSV files, figures and the page, each of them whole or not at all."""
    suite = config.suite
    results = collect(jobs, suite)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        write_atomically(directory / "results.csv", results.to_csv(index=False))
        if suite.curves:
            curves = collect_curves(jobs)
            write_atomically(directory / "curves.csv", curves.to_csv(index=False))
            if not many(suite):
                draw_curves(curves, results, suite, directory)
        gathered = [directory.with_name(f"{name}-{config.budget}") for name in _gathered(config)]
        draw_comparison(results, suite, directory)
        write_tables(results, suite, directory, _provenance(config, jobs, command), gathered)
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    return results


# -- jobs


def _gathered(config: BenchmarkConfig) -> list[str]:
    return [] if config.budget == "tiny" else config.suite.gather


def make_jobs(config: BenchmarkConfig, flags: Sequence[str] = ()) -> list[Job]:
    """All jobs of a suite: learners once per seed, fixed schemes once, each at every value.

    Args:
        config: of the benchmark.
        flags: such as `--config-dir=DIR`, told to every job.

    Raises:
        UserError: the suite names something that there is not.
    """
    suite = config.suite
    one_of("suite", suite, reference=tuple(suite.fixed), best=tuple(suite.fixed))
    if suite.transfer and suite.sweep is None:
        raise UserError(
            "suite.transfer: true needs suite.sweep, the key at whose values trained policies are evaluated"
        )
    make = _Jobs(config, tuple(flags))
    seeds = range(suite.amount("seeds", config.budget))
    pairs = [(scheme, seed) for scheme in suite.learners for seed in seeds]
    values: list[Value] = [*suite.values] or [None]
    values = values[:2] if config.budget == "tiny" else values
    jobs = [make.fixed(scheme, v) for v in values for scheme in sorted(suite.fixed, key=lambda s: s == suite.best)]
    if suite.transfer:
        trained = [make.trained(scheme, None, seed) for scheme, seed in pairs]
        return jobs + trained + [make.transferred(job, value) for value in values for job in trained]
    return jobs + [make.trained(scheme, value, seed) for value in values for scheme, seed in pairs]


@dataclass(frozen=True)
class _Jobs:
    """Makes the jobs of one suite."""

    config: BenchmarkConfig
    flags: tuple[str, ...]

    def fixed(self, scheme: str, value: Value) -> Job:
        suite, pair = self.config.suite, self.config.suite.fixed[scheme]
        if len(pair) < 2:
            raise UserError(f"suite.fixed.{scheme}: {pair} is not [cacher, allocator] and perhaps words on them")
        cacher, allocator, *own = pair
        episodes = suite.amount("slow_episodes" if allocator in SEARCHING else "episodes", self.config.budget)
        base = (*self._world(value), f"cacher={cacher}", f"allocator={allocator}", ALONE)
        changes = [word for word in self._swept(value) if word.startswith(("env.", "env/", "env="))] + suite.evaluated
        return self._composed(scheme, value, None, "evaluate", base, [*changes, *own, f"episodes={episodes}"])

    def trained(self, scheme: str, value: Value, seed: int) -> Job:
        suite, budget, learner = self.config.suite, self.config.budget, self.config.suite.learners[scheme]
        frames = round(suite.amount("frames", budget) * learner.length)
        every = max(frames // CURVE_POINTS, 1) if suite.curves else 0
        changes = [*self._swept(value), f"seed={seed}", f"frames={frames}", *learner.overrides]
        changes += [f"evaluation.final_episodes={suite.amount('episodes', budget)}"]
        changes += [f"evaluation.every_n_frames={every}"]
        base = (f"experiment={learner.experiment}", *self._world(value))
        return self._composed(scheme, value, seed, "train", base, changes)

    def transferred(self, trained: Job, value: Value) -> Job:
        """A policy that was trained once, evaluated at one of the values."""
        episodes = self.config.suite.amount("episodes", self.config.budget)
        changes = [*self._swept(value), *self.config.suite.evaluated, f"episodes={episodes}"]
        directory = self._directory(trained.scheme, [trained.directory.name, changes])
        checkpoint = f"checkpoint={quote(str(trained.directory / 'checkpoints' / 'last'))}"
        return Job(
            trained.scheme, value, trained.seed, "evaluate", (*self.flags, checkpoint, ALONE, *changes), directory
        )

    def _world(self, value: Value) -> list[str]:
        """The suite's scenario, unless the words of a value name another."""
        return [] if any(word.startswith("env=") for word in self._swept(value)) else [f"env={self.config.suite.env}"]

    def _swept(self, value: Value) -> list[str]:
        if isinstance(value, str):
            return list(self.config.suite.words[value])
        return [] if value is None else [f"{self.config.suite.sweep}={shown(value)}"]

    def _composed(
        self,
        scheme: str,
        value: Value,
        seed: int | None,
        command: str,
        base: tuple[str, ...],
        changes: list[str],
    ) -> Job:
        """A job in a directory named after what it computes: the base's whole config, and what changes it."""
        name = base[0].partition("=")[2] if command == "train" else scheme
        try:
            plain = _plain(command, (*self.flags, *base))
        except UserError as error:
            raise UserError(f"suite.{self.config.suite.name}: {scheme}: {error}") from None
        chosen = {key.split("/")[0] for key, _ in map(_parsed, changes) if "." not in key}  # their values are others
        last = {_parsed(word)[0]: word for word in changes}.values()  # of two words on a key the later one counts
        different = sorted(word for word in last if word.split(".")[0] in chosen or not _says_nothing(word, plain))
        directory = self._directory(name, [command, base, plain, different])
        return Job(scheme, value, seed, command, (*self.flags, *base, *changes), directory)

    def _directory(self, name: str, content: Any) -> Path:
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()
        return Path(self.config.output_dir) / JOBS / f"{Path(name).stem}-{digest}"


@functools.cache
def _plain(command: str, words: tuple[str, ...]) -> Any:
    return compose(command, words).plain


def _says_nothing(word: str, plain: Any) -> bool:
    """Whether an override only repeats what the base config says."""
    key, value = _parsed(word)
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return bool(plain == value)


@functools.cache
def _parsed(word: str) -> tuple[str, Any]:
    override = OverridesParser.create().parse_override(word)
    return str(override.key_or_group), override.value()


def _refuse_impossible(suite: str, jobs: Sequence[Job]) -> None:
    """Build what training runs train, one seed of each, so that a mistake is told now and not hours later."""
    for job in {(job.scheme, job.value): job for job in reversed(jobs)}.values():
        try:
            config = compose("train", job.words).config
            build_policies(config.env, config.cacher, config.allocator)
        except UserError as error:
            raise UserError(f"suite.{suite}: {job}: {error}") from None


def _numbered(suite: str, jobs: Sequence[Job], number: int) -> UserError | None:
    """Run one of the jobs and say that it is done; what went wrong is returned, so that the others go on."""
    job = jobs[number]
    try:
        execute(job)
    except UserError as error:
        print(f"{suite}: {job} failed: {error}", flush=True)
        return UserError(f"suite.{suite}: {job} failed: {error}")
    print(f"{suite}: {job} finished, {sum(not other.done for other in jobs)} to go", flush=True)
    return None


def execute(job: Job) -> None:
    """Run one job in this process, from where it was interrupted if it was.

    Raises:
        UserError: what went wrong with it.
    """
    if job.done:  # by another suite, in the meantime
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = _train(job) if job.trains else {"evaluation": play(compose("evaluate", job.words))}
    job.directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(job.directory)
    write_atomically(job.directory / DONE, as_json({"commit": commit(), **found}))


def _train(job: Job) -> dict[str, Any]:
    summary = job.directory / "summary.json"
    if not summary.exists():  # the last thing that a run writes
        where = [f"output_dir={quote(str(job.directory))}", "resume=auto", "progress_bar=false", "figures=false"]
        run("train", [*job.words, *where])
    evaluation = json.loads((job.directory / RESULT).read_text())
    return {"evaluation": evaluation, "training_seconds": json.loads(summary.read_text())["training_seconds"]}


def commit() -> str:
    """The commit the code is at, with a + where it is changed since; `unknown` outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "lightning_t2drl", "callbacks", "configs", "benchmarks")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
    except OSError:  # no git on this machine
        return "unknown"


# -- results


def collect(jobs: Sequence[Job], suite: SuiteConfig) -> pd.DataFrame:
    """One row per evaluation with its means, and beside them those of the reference and the best scheme.

    A scheme that searches plays few episodes, which are the first ones of the others (see `evaluate`). Its utility and
    hit ratio are put on the scale of all episodes by what the best scheme reached in these and in all; what it reached
    itself stays as `utility_played`, `hit_ratio_played`.
    """
    found = {job: job.found() for job in jobs if not (job.trains and suite.transfer)}
    stored = {job: content["evaluation"] for job, content in found.items()}
    metrics = {job: content["schemes"][content["name"]] for job, content in stored.items()}
    rows = []
    for job, content in stored.items():
        row: dict[str, Any] = {"scheme": job.scheme, "value": job.value, "seed": job.seed}
        row |= {"episodes": content["episodes"]} | {key: entry["mean"] for key, entry in metrics[job].items()}
        if job.trains:
            row["training_seconds"] = found[job]["training_seconds"]
        reference, best = (
            metrics[next(j for j in stored if j.scheme == scheme and j.value == job.value)]
            for scheme in (suite.reference, suite.best)
        )
        for key in ("utility", "hit_ratio"):
            of_best = best[key].get("episodes") or []
            same = of_best[: content["episodes"]]
            row[f"{key}_played"] = row[key]
            if len(same) < len(of_best) and row[key] is not None and sum(same):
                row[key] *= best[key]["mean"] / (sum(same) / len(same))
            row |= {f"reference_{key}": reference[key]["mean"], f"best_{key}": best[key]["mean"]}
        rows.append(row)
    return pd.DataFrame(rows)


def collect_curves(jobs: Sequence[Job]) -> pd.DataFrame:
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


def _worlds(jobs: Sequence[Job]) -> str:
    """How many worlds learners train on side by side."""
    learners = {job.scheme: job.words for job in jobs if job.trains}
    counts = {compose("train", words).config.env.num_envs for words in learners.values()}
    return " or ".join(map(str, sorted(counts)))


def _provenance(config: BenchmarkConfig, jobs: Sequence[Job], command: str) -> list[str]:
    """Who made this: command, commits, date, machine class, settings."""
    suite, budget = config.suite, config.budget
    commits = sorted({job.found()["commit"] for job in jobs})
    hindsight = any(job.found()["evaluation"].get("hindsight") for job in jobs)
    longer = ", ".join(
        f"{name} {each.length:g} times as many" for name, each in suite.learners.items() if each.length != 1
    )
    return [
        f"- command: `{command}`",
        f"- runs made at commit {', '.join(commits)}; page of {date.today().isoformat()}; {platform.machine()} with "
        f"{os.cpu_count()} cores, Python {platform.python_version()}",
        f"- env={suite.env}; training seeds 0 to {suite.amount('seeds', budget) - 1}, "
        f"{suite.amount('frames', budget)} frames of {_worlds(jobs)} worlds{longer and f' ({longer})'}; "
        f"{suite.amount('episodes', budget)} held-out episodes, the same worlds for all schemes (for "
        f"{', '.join(SEARCHING)} the first {suite.amount('slow_episodes', budget)}, put on the scale of all)",
        *([f"- evaluations with {', '.join(suite.evaluated)}"] if suite.evaluated else []),
        *(["- the oracle's cache knows the requests of each frame, in hindsight"] if hindsight else []),
    ]
