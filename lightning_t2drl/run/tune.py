"""A search for good values of keys by Optuna: what `t2drl tune` does.

A trial is a training run. It ends early where its evaluations fall behind; one that was killed goes on from its
checkpoint. The study is in a database, so that a search resumes and several workers share it.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import yaml
from omegaconf import OmegaConf
from rich.text import Text

from lightning_t2drl.building import build_policies
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.loop.stored import leaves
from lightning_t2drl.run.choices import groups
from lightning_t2drl.run.commands import prepare_process
from lightning_t2drl.run.compose import SHORT, Composed, compose
from lightning_t2drl.run.loggers import EVALUATIONS
from lightning_t2drl.run.overrides import as_override, parse, read
from lightning_t2drl.run.results_dir import RUNS
from lightning_t2drl.run.schemas import TuneConfig
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.sizes import idle_learners
from lightning_t2drl.run.sweep import launch
from lightning_t2drl.run.tables import plain_table
from lightning_t2drl.run.train import train

QUIET = ("resume=auto", "progress_bar=false", "figures=false", "evaluation.final_episodes=0")
RANGE = ("key", "low", "high", "log", "choices")
SHOWN = 5  # trials of the table
LEAST_TRIALS = 10  # fewer that came to their end say nothing of what matters
STUDY = "study.db"
SEARCH = "search"  # attribute of a study: what it searches
OWN = ("output_dir", *(word.partition("=")[0] for word in QUIET))  # keys that a search sets itself
HARMLESS = ("name", "output_dir", "resume", "progress_bar", "figures", "logger", "checkpoint", "trainer")
NO_EVALUATIONS = "evaluation.every_n_frames: a search needs evaluations during training"


@dataclass(frozen=True)
class Tuning:
    """What a search has found so far.

    Args:
        trials: one row per finished trial: `trial`, `state`, `utility` and each key's value.
        best: words that set the best values.
        experiment: the best config as an experiment file.
        output_dir: where everything is.
    """

    trials: pd.DataFrame
    best: list[str]
    experiment: Path
    output_dir: Path


def run_tune(composed: Composed) -> Tuning:
    """Search until the study has as many finished trials as asked for, and write what it found.

    Raises:
        UserError: a key or range cannot be, Optuna is not installed, or no trial finished.
    """
    optuna = _optuna()
    config, screen = composed.config, console()
    flags = [f"--config-dir={directory}" for directory in read(composed.arguments).config_dirs]
    words = [*flags, *config.train]
    ranges = [_checked(number, entry) for number, entry in enumerate(config.space.keys)]
    if not ranges:
        raise UserError("space.keys: empty; name the keys to search, or choose a space")
    keys = [r["key"] for r in ranges]
    if unfit := [key for key in keys if keys.count(key) > 1 or key in OWN]:
        why = "is the search's own" if unfit[0] in OWN else "stands there twice"
        raise UserError(f"space.keys: {unfit[0]} {why}")
    # Both ends of every range have to compose.
    ends = [compose("train", [*words, *(as_override(r["key"], _values(r)[end])[0] for r in ranges)]) for end in (-1, 0)]
    if not all(end.config.evaluation.every_n_frames for end in ends):
        raise UserError(NO_EVALUATIONS)
    directory = _place(config)
    study = open_study(config, directory)
    _expect_same_search(study, ends[-1].plain, ranges)
    done = len(_finished(study))
    screen.print(
        f"study {study.study_name} in {_url(config, directory)}: {done} of {config.trials} trials are finished"
    )
    one = ends[-1].config
    for line in idle_learners(one, *build_policies(one.env, one.cacher, one.allocator)):
        screen.print(line, style="yellow", soft_wrap=True)
    job = partial(work, config, words, ranges, directory)
    here = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={config.workers}"]
    for outcome in launch(job, config.workers, here) if config.workers > 1 else [job(0)]:
        if isinstance(outcome, Exception):
            raise outcome
    if not study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        raise UserError(f"{directory}: no trial finished")
    return report(study, words, directory, screen)


def _place(config: TuneConfig) -> Path:
    """The search's directory, made if there is none."""
    directory = Path(config.output_dir or RUNS / "tune" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if config.storage is None and "?" in str(directory):
        raise UserError(f"output_dir: {directory}: the address of a database cannot hold a ?; choose another")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    if held and not held & {STUDY, "trials"}:
        raise UserError(f"output_dir: {directory} is not empty, and holds no search to go on with; choose another")
    return directory


def _expect_same_search(study: Any, plain: dict[str, Any], ranges: list[dict[str, Any]]) -> None:
    """Refuse to go on with a study of other runs or other ranges, whose utilities would be compared with these."""
    runs = dict(leaves({key: value for key, value in plain.items() if key not in HARMLESS}))
    searched = [entry["key"] for entry in ranges]
    asked = {"space.keys": ranges} | {key: value for key, value in runs.items() if key not in searched}
    now = json.loads(json.dumps(asked))
    then = study.user_attrs.get(SEARCH)
    if then is None:
        study.set_user_attr(SEARCH, now)
        return
    different = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if different:
        listed = ["space.keys"] if "space.keys" in different else different[:5]
        said = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in listed)
        raise UserError(
            f"study: {study.study_name} searches something else: {said}; choose another output_dir or study"
        )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError('tune: Optuna is not installed; pip install "lightning-t2drl[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _checked(number: int, entry: Any) -> dict[str, Any]:
    """A key and its range, or its choices."""
    where = f"space.keys[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or set(entry) - set(RANGE):
        raise UserError(f"{where}: {entry!r} is no group of key, low, high, log, or of key and choices")
    if ("choices" in entry) == ("low" in entry and "high" in entry):
        raise UserError(f"{where}: {entry['key']} needs either low and high, or choices")
    if type(entry.get("log", False)) is not bool:
        raise UserError(f"{where}: {entry['key']} has log {entry['log']!r}, which is neither true nor false")
    if "choices" not in entry and not _is_range(entry["low"], entry["high"], entry.get("log", False)):
        raise UserError(f"{where}: {entry['key']} from {entry['low']} to {entry['high']} is no range")
    if "choices" in entry and not (isinstance(entry["choices"], list) and entry["choices"]):
        raise UserError(f"{where}: {entry['key']} has no choices")
    return entry


def _is_range(low: Any, high: Any, log: bool) -> bool:
    numbers = all(type(end) in (int, float) and math.isfinite(end) for end in (low, high))
    return numbers and low < high and (low > 0 or not log)


def _values(entry: dict[str, Any]) -> list[Any]:
    return entry["choices"] if "choices" in entry else [entry["low"], entry["high"]]


def _url(config: TuneConfig, directory: Path) -> str:
    return config.storage or f"sqlite:///{directory / STUDY}"


def open_study(config: TuneConfig, directory: Path) -> Any:
    """The study, made if there is none. A trial that shows no life for a while is tried again, from its checkpoint."""
    optuna = _optuna()
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    every = config.heartbeat
    pruner = optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = RDBStorage(
                _url(config, directory),
                heartbeat_interval=every,
                grace_period=2 * every,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
            return optuna.create_study(
                storage=storage,
                study_name=config.study,
                sampler=optuna.samplers.TPESampler(n_startup_trials=config.startup_trials, multivariate=True),
                pruner=pruner if config.prune else optuna.pruners.NopPruner(),
                direction="maximize",
                load_if_exists=True,
            )
    except Exception as error:  # of the database's driver, whichever it is
        raise UserError(f"storage: {_url(config, directory)} cannot be used ({str(error).splitlines()[0]})") from None


def _finished(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def work(config: TuneConfig, words: Sequence[str], ranges: list[dict[str, Any]], directory: Path, worker: int) -> None:
    """Play trials of the study until enough are finished; a line for each."""
    prepare_process()
    study = open_study(config, directory)

    def enough(study: Any, trial: Any) -> None:
        best = max((t.value for t in _finished(study) if t.state.name == "COMPLETE"), default=float("nan"))
        what = f"utility {trial.value:.4f}" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        values = " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
        print(f"trial {trial.number}: {what} (best {best:.4f}) {values}", flush=True)
        if len(_finished(study)) >= config.trials:
            study.stop()

    if len(_finished(study)) < config.trials:
        study.optimize(partial(_objective, words, ranges, directory), callbacks=[enough])


def _objective(words: Sequence[str], ranges: list[dict[str, Any]], directory: Path, trial: Any) -> float:
    """Train with the values that the study suggests: the utility of the last evaluation."""
    optuna = _optuna()
    suggested = [word for entry in ranges for word in as_override(entry["key"], _suggest(trial, entry))]
    frozen = next(t for t in trial.study.get_trials(deepcopy=False) if t.number == trial.number)
    number = frozen.system_attrs.get("failed_trial")  # it goes on where that one was killed
    place = directory / "trials" / str(trial.number if number is None else number)
    composed = compose("train", [*words, *suggested, *QUIET, f"output_dir={place}"])
    config = composed.config
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            train(config, OmegaConf.create(composed.plain), list(composed.arguments), [Reporting(trial)])
        except NonFiniteError as error:
            raise optuna.TrialPruned(str(error)) from None
    table = place / EVALUATIONS
    if not table.exists():
        raise UserError(NO_EVALUATIONS)
    return float(pd.read_csv(table)["utility"].iloc[-1])


def _suggest(trial: Any, entry: dict[str, Any]) -> Any:
    key, choices = entry["key"], entry.get("choices")
    if choices is not None:
        return trial.suggest_categorical(key, choices)
    whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, entry["low"], entry["high"], log=bool(entry.get("log")))


class Reporting(L.Callback):
    """Tells the study of every evaluation, and ends a run that falls behind."""

    def __init__(self, trial: Any) -> None:
        self.trial, self.frame = trial, -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = pl_module.last_evaluation
        if found is None or found["frame"] <= self.frame:
            return
        self.frame = found["frame"]
        self.trial.report(found["utility"], self.frame)
        if self.trial.should_prune():
            raise _optuna().TrialPruned


# -- what was found


def report(study: Any, words: Sequence[str], directory: Path, screen: Any) -> Tuning:
    """Print and write the trials, the importance of each key, and the best config as an experiment."""
    finished = _finished(study)
    rows = [{"trial": t.number, "state": t.state.name.lower(), "utility": t.value, **t.params} for t in finished]
    trials = pd.DataFrame(rows)
    write_atomically(directory / "trials.csv", trials.to_csv(index=False))
    weights = importance(study)
    best = [word for key, value in study.best_params.items() for word in as_override(key, value)]
    path = write_experiment(words, best, study, directory)
    table = plain_table("key", "importance", "best value")
    for key, value in study.best_params.items():
        table.add_row(*map(Text, (key, _weight(weights, key), _short(value))))
    pruned = sum(t.state.name == "PRUNED" for t in finished)
    best_of = f"best utility {study.best_value:.4f} in trial {study.best_trial.number}"
    table.title = Text(f"{len(finished)} trials, {pruned} ended early; {best_of}")
    screen.print(table, soft_wrap=False)
    top = trials.sort_values("utility", ascending=False).head(SHOWN)
    lines = [f"# Study {study.study_name}", "", f"{len(finished)} trials, {pruned} of them ended early.", "",
             "| key | importance | best value |", "| --- | --- | --- |"]  # fmt: skip
    lines += [f"| {key} | {_weight(weights, key)} | {_short(value)} |" for key, value in study.best_params.items()]
    lines += ["", "The importance (PED-ANOVA) is the share of the variance among good trials that a key explains, "
              f"known from {LEAST_TRIALS} trials that were not ended early.", ""]  # fmt: skip
    lines += ["| " + " | ".join(top) + " |", "|" + " --- |" * len(top.columns)]
    lines += ["| " + " | ".join(map(_short, row)) + " |" for row in top.itertuples(index=False)]
    write_atomically(directory / "tune.md", "\n".join(lines) + "\n")
    files = "".join(f" {word}" for word in _files(words))
    screen.print(f"train with it: t2drl train --config-dir={directory} experiment={path.stem}{files}")
    return Tuning(trials, best, path, directory)


def _weight(weights: dict[str, float], key: str) -> str:
    return f"{weights[key]:.2f}" if key in weights else "-"


def importance(study: Any) -> dict[str, float]:
    """How much each key matters among good trials, summing to 1; nothing where there are too few trials to say."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(study.get_trials(states=(_optuna().trial.TrialState.COMPLETE,))) < LEAST_TRIALS:
        return {}
    try:
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):
        return {}


def write_experiment(words: Sequence[str], best: Sequence[str], study: Any, directory: Path) -> Path:
    """The experiment that was searched, with the words given and the best values, below `directory/experiment/`."""
    base, choices, values, files = "t2drl", [], OmegaConf.create(), _files(words)
    known = groups("train")
    for override in parse([*read(words).overrides, *best]):
        name, value = str(override.key_or_group), override.value()
        name = SHORT.get(name, name) if isinstance(value, str) else name
        if str(override.input_line) in files:
            continue
        if name == "experiment":
            base = str(value)
        elif name in known or "/" in name:
            choices.append({f"override /{name}": value})
        elif name not in ("output_dir", "resume", "name"):
            OmegaConf.update(values, name, value)
    name = f"{base}_tuned"
    content = {"defaults": [base, *choices], "name": name} | OmegaConf.to_container(values)  # type: ignore[operator]
    found = f"the best values of {len(_finished(study))} trials: utility {study.best_value:.4f}"
    text = f"# @package _global_\n# {base} with {found}.\n"
    text += f"# Beside it belongs {' '.join(files)}.\n" if files else ""
    path = directory / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text + yaml.safe_dump(content, sort_keys=False))
    return path


def _files(words: Sequence[str]) -> list[str]:
    """Words that choose a file by its path: an experiment cannot name one."""
    given = [override for override in parse(read(words).overrides) if str(override.value()).endswith((".yaml", ".yml"))]
    return [str(o.input_line) for o in given if o.key_or_group in {*groups("train"), *SHORT} or "/" in o.key_or_group]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
