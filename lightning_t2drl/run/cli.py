"""What all entry points share: compose with Hydra, check, run, and show a user's mistake as one line."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.run.schemas import strict
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

Job = Callable[[Any, DictConfig, list[str]], Any]

# These belong to Hydra's own command line (help, sweeps, shell completion), which takes over when one is given.
HYDRA_FLAGS = (
    "-m",
    "--multirun",
    "-h",
    "--help",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "-p",
    "--package",
    "-sc",
)

LAUNCHER_EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}  # what installs which launcher

PATHS = ("resume", "checkpoint", "output", "output_dir", "work_dir")
HELD_BACK = ("env.", "cacher.", "allocator.")


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """The composed configuration.

    Raises:
        UserError: an override names no key or group there is, or a value of another kind; one line.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_ROOT), version_base="1.3"):
            return compose(config_name, overrides=[_quoted(override) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from None


def _quoted(override: str) -> str:
    """Paths may hold `=`, as those of checkpoints do, which Hydra only takes in quotes."""
    key, _, value = override.partition("=")
    if key in PATHS and "=" in value and value[0] not in "'\"":
        return f"{key}='{value}'"
    return override


def _one_line(error: BaseException) -> str:
    """What Hydra says in many lines, in one: the key or group, and what there is."""
    text = str(error)
    if missing := re.search(r"Could not find '(.+)/(.+)'", text):
        group, choice = missing.groups()
        if group == "hydra/launcher" and choice in LAUNCHER_EXTRAS:
            return f"{group}={choice}: not installed; pip install lightning-t2drl[{LAUNCHER_EXTRAS[choice]}]"
        known = re.findall(r"^\t(\S+)$", text.partition("Available options in")[2], re.M)
        return f"{group}={choice}: no such choice; there are {', '.join(known)}"
    if missing := re.search(r"Could not override '(.+)'\.", text):
        return f"{missing.group(1)}: no such key"
    return " ".join(line.strip() for line in text.splitlines() if line.strip()) or type(error).__name__


def prepare_process() -> None:
    """What every process that runs a job needs; a sweep's launcher may have started it."""
    quiet_libraries()
    torch.set_flush_denormal(True)  # denormals slow updates down several times over


def quiet_libraries() -> None:
    """Silence what third parties say about themselves; their errors stay."""
    for name in ("torchrl", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torchrl|tensordict|torch|hydra|pymoo|wandb|arch|rliable)\b.*")
    os.environ.setdefault("WANDB_SILENT", "true")


def run(config_name: str, schema: type, job: Job, overrides: list[str]) -> Any:
    """Compose, check and run, in this process. Raises what went wrong; `entry_point` is the one that prints.

    With `checkpoint=`, what is said of env, cacher and allocator key by key changes the checkpoint's config, not the
    one composed here: the job applies it.
    """
    held_back = HELD_BACK if any(o.startswith("checkpoint=") for o in overrides) else ()
    raw = compose_config(config_name, [o for o in overrides if not o.startswith(held_back)])
    return job(strict(schema, raw), raw, overrides)


def entry_point(config_name: str, schema: type, job: Job) -> None:
    """The command line of one entry point.

    Exit status: 0 when done, 1 after one line about a user's mistake or about NaN, 128 + n when signal n ended the run.
    """
    prepare_process()
    arguments = sys.argv[1:]
    try:
        if any(flag in arguments for flag in HYDRA_FLAGS):
            _hydra_main(config_name, schema, job)
        else:
            run(config_name, schema, job, arguments)
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def sweep(config_name: str, schema: type, job: Job, arguments: list[str]) -> None:
    """`-m` with these arguments on an entry point's command line, from inside this process."""
    before = sys.argv
    sys.argv = [before[0], "-m", *arguments]
    try:
        GlobalHydra.instance().clear()
        _hydra_main(config_name, schema, job)
    finally:
        sys.argv = before


def _leave(number: int, frame: FrameType | None) -> None:
    """End by way of `finally`: at once, a launcher's workers would stay behind and go on with what is queued."""
    raise SystemExit(128 + number)


def _hydra_main(config_name: str, schema: type, job: Job) -> None:
    """Sweeps and Hydra's own flags. A sweep runs all its jobs, then fails with the first error one of them met."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `entry_point`, which puts them into one line, as they are

    @hydra.main(version_base="1.3", config_path=str(CONFIG_ROOT), config_name=config_name)
    def main(raw: DictConfig) -> None:
        prepare_process()
        job(strict(schema, raw), raw, list(HydraConfig.get().overrides.task))

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        main()
    finally:
        signal.signal(signal.SIGTERM, before)
