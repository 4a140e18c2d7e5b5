"""Many jobs by one of Hydra's launchers, on this machine or a cluster; each is composed like a single run."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.run.choices import no_such_choice
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.overrides import Words, expand, parse, split
from lightning_t2drl.run.results_dir import leaving_by_finally
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.tables import plain_table
from lightning_t2drl.system.catalogue import CONFIG_ROOT

LOOK_FOR_PARENT = 1.0  # s between two checks that the parent process still lives
BUSY = threading.Lock()  # held while a job runs


def launch(task: Callable[[int], Any], count: int, launcher: Sequence[str]) -> list[Any]:
    """Run `task(0)` to `task(count - 1)` by a launcher.

    Args:
        task: what a job is; it must be picklable, and so must what it returns.
        count: number of jobs.
        launcher: words such as `hydra/launcher=joblib` and `hydra.launcher.n_jobs=2`; none: one after the other, here.

    Returns:
        What the jobs returned; for one that failed, the exception.

    Raises:
        UserError: the launcher is none, or not installed.
    """
    # Leaving at once, a launcher's workers would stay behind and go on with what is queued.
    with launcher_config(launcher) as (config, loader), leaving_by_finally():
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        function = partial(_numbered, task, os.getpid())
        runner = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=function, config=config)
        runs = runner.launch([[f"job={number}"] for number in range(count)], initial_job_idx=0)
        return [run.return_value for run in runs]


@contextmanager
def launcher_config(launcher: Sequence[str]) -> Iterator[tuple[DictConfig, ConfigLoader]]:
    """Hydra's own config with a launcher in it, and Hydra's loader of configs.

    Raises:
        UserError: the launcher is none, or not installed, or has no such key.
    """
    GlobalHydra.instance().clear()
    parse(launcher)
    try:
        with hydra.initialize_config_dir(str(CONFIG_ROOT), version_base="1.3"):
            config = hydra.compose("sweep", overrides=list(launcher), return_hydra_config=True)
            yield config, GlobalHydra.instance().config_loader()
    except (HydraException, OmegaConfBaseException) as error:
        if missing := re.search(r"Could not find '(.+)/(.+)'", str(error)):
            raise UserError(no_such_choice(missing[1], missing[2], ())) from None
        raise UserError(" ".join(str(error).split())) from None


def _numbered(task: Callable[[int], Any], parent: int, config: DictConfig) -> Any:
    """One job, wherever it runs; exceptions are returned, so that the others go on."""
    HydraConfig.instance().cfg = None  # Lightning would start processes of its own by Hydra's command line
    if os.getpid() != parent:
        _end_with_parent()
    try:
        with BUSY:
            return task(int(config.job))
    except (UserError, NonFiniteError) as error:
        return error
    except Exception as error:
        return RuntimeError("".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    """End this process as SIGTERM does when the one that started it is gone, however that ended."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_FOR_PARENT)
        os.kill(os.getpid(), signal.SIGTERM)
        with BUSY:  # the run has saved its checkpoint; a worker of joblib's would wait for minutes for the next
            os._exit(128 + signal.SIGTERM)

    if not any(thread.name == "parent" for thread in threading.enumerate()):  # one process may run several jobs
        threading.Thread(target=look, name="parent", daemon=True).start()


# -- -m


def sweep(command: str, words: Words) -> list[Any]:
    """Every combination of the values listed, a line when a job is done, and a table of all in the end.

    Raises:
        UserError: a job failed, the first that did; the others have run.
    """
    launcher, own = split(words.overrides)
    jobs = expand(own)
    common = set.intersection(*map(set, jobs))
    fixed = [o for o in parse(common) if o.key_or_group == "output_dir" and o.value() is not None]
    if len(jobs) > 1 and fixed and "${" not in str(fixed[0].value()):
        raise UserError("output_dir: jobs need one each; put a key into it, such as ${seed}, or leave it out")
    labels = [" ".join(word for word in job if word not in common) or " ".join(job) for job in jobs]
    flags = [f"--config-dir={directory}" for directory in words.config_dirs]
    outcomes = launch(partial(_job, command, flags, jobs, labels), len(jobs), launcher)
    screen = console()
    table = plain_table("job", "utility", "hit ratio", "output_dir")
    for label, outcome in zip(labels, outcomes, strict=True):
        failed = isinstance(outcome, Exception)
        table.add_row(*map(Text, (label, *(("failed", "", "") if failed else outcome))))
    screen.print(table, soft_wrap=False)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failures:
        raise failures[0]
    return outcomes


def _job(command: str, flags: list[str], jobs: list[list[str]], labels: list[str], number: int) -> tuple[str, ...]:
    """Run one job as `t2drl COMMAND` would, but for what it prints; say in one line how it ended."""
    argv = sys.argv
    script = os.path.basename(argv[0]) == f"{command}.py"  # which needs no command
    sys.argv = [argv[0], *([] if script else [command]), *flags, *jobs[number]]  # what DDP starts its processes with
    what = f"job {number + 1} of {len(jobs)}: {labels[number]}"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            outcome = _outcome(run(command, [*flags, *jobs[number], *_quiet(command)]))
    except Exception as error:
        print(f"{what}: failed: {error}", flush=True)
        raise
    finally:
        sys.argv = argv
    print(f"{what}: " + ", ".join(f"{label} {text}" for label, text in zip(SHOWN, outcome, strict=True) if text))
    sys.stdout.flush()
    return outcome


SHOWN = ("utility", "hit ratio", "in")


def _quiet(command: str) -> list[str]:
    return ["progress_bar=false"] if command in ("train", "evaluate") else []


def _outcome(result: Any) -> tuple[str, str, str]:
    """What the table shows of a job."""
    frame, where = getattr(result, "schemes", None), str(getattr(result, "output_dir", ""))
    if frame is None or "metric" not in frame:
        return "", "", where
    own = frame[frame["scheme"] == result.name].set_index("metric")["mean"]
    return f"{own['utility']:.4f}", f"{own['hit_ratio']:.3f}", where
