"""The commands there are, and how one runs in this process: what the command line, sweeps and the Python API share."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_t2drl.accel.memory import keep_freed_memory


@dataclass(frozen=True)
class Command:
    """An entry point.

    Args:
        about, example: what it does, and words for it.
        job: the function that does it with a `Composed`, as MODULE:NAME.
        takes: the key that words without `=` go to: a list, or the checkpoint.
        composed: whether the job gets a `Composed`, in a process that is prepared; else it gets the words.
        named: whether words on keys that the command does not have go there, too, such as NAME=PATH.
    """

    about: str
    example: str
    job: str
    takes: str | None = None
    named: bool = False
    composed: bool = True

    @property
    def sweeps(self) -> bool:
        """Whether `-m` runs it for several values: not where bare words are its list."""
        return self.composed and self.takes is None


COMMANDS = {
    "train": Command(
        "Train a cacher and an allocator.", "experiment=quickstart seed=1", "lightning_t2drl.run.training:run_training"
    ),
    "evaluate": Command(
        "Play a checkpoint, or any pair of policies, beside RCARS and the oracle.",
        "checkpoint=runs/quickstart/latest/checkpoints/best env.users=20",
        "lightning_t2drl.run.evaluate:run_evaluation",
    ),
    "benchmark": Command(
        "Compare schemes over seeds and settings: tables, intervals, figures.",
        "suite=headline budget=tiny",
        "lightning_t2drl.suite.benchmark:run_suite",
    ),
    "export": Command(
        "Write a checkpoint's decisions as ONNX, to be run without PyTorch.",
        "checkpoint=runs/quickstart/latest/checkpoints/best output_dir=policy",
        "lightning_t2drl.deploy.export:run_export",
    ),
    "compare": Command(
        "Runs and evaluations side by side: a table with intervals, learning curves.",
        "ours=runs/a runs/b 'baseline=runs/t2drl_ddpg/*'",
        "lightning_t2drl.suite.compare:run_compare",
        takes="runs",
        named=True,
    ),
    "calibrate": Command(
        "Measure a generative model: quality and seconds against steps.",
        "service=inpaint",
        "lightning_t2drl.calibrate.job:run_calibration",
    ),
    "explain": Command(
        "What to cache and how to split it in a situation, and why not otherwise.",
        "checkpoint=runs/quickstart/latest/checkpoints/best examples/slot.json",
        "lightning_t2drl.run.explain:run_explain",
        takes="slot",
    ),
    "view": Command(
        "Every slot on one HTML page: map, split, delays, caches, what was lost.",
        "checkpoint=runs/quickstart/latest/checkpoints/best episodes=10",
        "lightning_t2drl.run.view:run_view",
        takes="records",
    ),
    "tune": Command(
        "Search for good values of keys: trials end early, a search resumes.",
        "experiment=quickstart space=learning_rates trials=30 output_dir=runs/tune",
        "lightning_t2drl.run.tune:run_tune",
        takes="train",
        named=True,
    ),
    "trace": Command(
        "Write the requests of a world as a trace that can be played.",
        "slots=2000 output=trace.csv",
        "lightning_t2drl.run.trace:run_trace",
    ),
    "diagnose": Command(
        "Say what a run suffers from: noise, critics, wasted steps, hits, late users.",
        "runs/quickstart/latest",
        "lightning_t2drl.run.diagnose:run_diagnosis",
        takes="checkpoint",
    ),
    "serve": Command(
        "An exported policy as an HTTP service, without PyTorch.",
        "policy=policy port=8000",
        "lightning_t2drl.deploy.serve:run_serve",
        composed=False,
    ),
}


def run(command: str, arguments: Sequence[str]) -> Any:
    """Compose, check and run in this process, and return what the command's function returns.

    Raises:
        UserError: what the user can mend; nothing is printed of it here.
    """
    module, _, name = COMMANDS[command].job.partition(":")
    if not COMMANDS[command].composed:
        return getattr(importlib.import_module(module), name)(arguments)
    from lightning_t2drl.run.compose import compose

    import_from_here()
    composed = compose(command, spelt_out(command, arguments))
    prepare_process()
    return getattr(importlib.import_module(module), name)(composed)


def spelt_out(command: str, arguments: Sequence[str]) -> list[str]:
    """The words of a command line, with those gathered that belong to the one list that the command takes."""
    takes, named = COMMANDS[command].takes, COMMANDS[command].named
    if takes is None:
        return list(arguments)
    from lightning_t2drl.run.choices import groups, primary
    from lightning_t2drl.run.overrides import quote, read

    given = read(arguments)
    known = {*primary(command), *groups(command), "hydra"}

    def listed(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~").partition(".")[0].partition("/")[0]
        return ("=" not in word and word[0] != "~") or (named and key not in known)

    words = [word for word in given.overrides if not listed(word)]
    if taken := [quote(word) for word in given.overrides if listed(word)]:
        words.append(f"{takes}={taken[-1]}" if takes == "checkpoint" else f"{takes}=[{','.join(taken)}]")
    return [*(f"--config-dir={directory}" for directory in given.config_dirs), *words]


def prepare_process() -> None:
    """What every process that runs a job needs; a sweep's launcher may have started it."""
    import torch

    import_from_here()
    quiet_libraries()
    keep_freed_memory()
    torch.set_flush_denormal(True)  # denormals slow updates down several times over


def import_from_here() -> None:
    """Let a user's own classes be in a module beside the data."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def quiet_libraries() -> None:
    """Silence what third parties say about themselves; their errors stay."""
    for name in ("torchrl", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module=r"(lightning|torchrl|tensordict|torch|hydra|pymoo|wandb|arch|rliable|optuna|sqlalchemy)\b.*"
    )
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("RL_LOGGING_LEVEL", "ERROR")  # of torchrl, where it is imported later
