"""The command line: `t2drl COMMAND key=value ...`, and what every command shares.

Exit status: 0 when done, 1 after one line about a user's mistake or about NaN, 128 + n when signal n ended the run.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_t2drl import __version__
from lightning_t2drl.accel.memory import keep_freed_memory
from lightning_t2drl.errors import NonFiniteError, UserError


@dataclass(frozen=True)
class Command:
    """An entry point: what it does, an example, and the function that does it with a `Composed`, as MODULE:NAME."""

    about: str
    example: str
    job: str


COMMANDS = {
    "train": Command(
        "Train a cacher and an allocator.", "experiment=quickstart seed=1", "lightning_t2drl.run.training:run_training"
    ),
    "evaluate": Command(
        "Play a checkpoint, or any pair of policies, beside RCARS and the oracle.",
        "checkpoint=runs/t2drl/latest/checkpoints/best env.users=20",
        "lightning_t2drl.run.evaluate:run_evaluation",
    ),
    "benchmark": Command(
        "Compare schemes over seeds and settings: tables, intervals, figures.",
        "suite=headline budget=tiny",
        "lightning_t2drl.suite.benchmark:run_suite",
    ),
    "export": Command(
        "Write a checkpoint's decisions as ONNX, to be run without PyTorch.",
        "checkpoint=runs/t2drl/latest/checkpoints/best output_dir=policy",
        "lightning_t2drl.deploy.export:run_export",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command `t2drl`; ends the process with the exit status above where that is not 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _main(given)
        sys.stdout.flush()
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _main(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return
    if given[0] == "--version":
        print(__version__)
        return
    command, *arguments = given
    if command not in COMMANDS:
        from lightning_t2drl.checks import nearest

        raise UserError(f"{command}: no such command{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}")
    from lightning_t2drl.run.overrides import read

    words = read(arguments)
    if words.help:
        from lightning_t2drl.run.help import command_help

        print(command_help(command, COMMANDS[command], words.config_dirs))
    elif words.show:
        import yaml

        from lightning_t2drl.run.compose import compose

        shown = [*(f"--config-dir={directory}" for directory in words.config_dirs), *words.overrides]
        print(yaml.safe_dump(compose(command, shown).plain, sort_keys=False), end="")
    elif words.multirun:
        from lightning_t2drl.run.sweep import sweep

        sweep(command, words)
    else:
        run(command, arguments)


def run(command: str, arguments: Sequence[str]) -> Any:
    """Compose, check and run in this process, and return what the command's function returns.

    Raises:
        UserError: what the user can mend; nothing is printed of it here.
    """
    prepare_process()
    from lightning_t2drl.run.compose import compose

    module, _, name = COMMANDS[command].job.partition(":")
    composed = compose(command, arguments)
    return getattr(importlib.import_module(module), name)(composed)


def prepare_process() -> None:
    """What every process that runs a job needs; a sweep's launcher may have started it."""
    import torch

    quiet_libraries()
    keep_freed_memory()
    torch.set_flush_denormal(True)  # denormals slow updates down several times over
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own classes are in a module beside the data


def quiet_libraries() -> None:
    """Silence what third parties say about themselves; their errors stay."""
    for name in ("torchrl", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torchrl|tensordict|torch|hydra|pymoo|wandb|arch|rliable)\b.*")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("RL_LOGGING_LEVEL", "ERROR")  # of torchrl, where it is imported later


def _usage() -> str:
    lines = [
        "T2DRL: two-timescale model caching and resource allocation at the edge.",
        "",
        "usage: t2drl COMMAND [-m] [--config-dir=DIR] [KEY=VALUE ...]",
        "",
        *(f"  {name:<11}{command.about}" for name, command in COMMANDS.items()),
        "",
        "t2drl COMMAND --help lists what there is to choose. Two to begin with:",
        "",
        *(f"  t2drl {name} {COMMANDS[name].example}" for name in ("train", "evaluate")),
    ]
    return "\n".join(lines)
