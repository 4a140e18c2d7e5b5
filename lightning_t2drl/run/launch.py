"""Which launcher started this process, and as which of how many; it is believed only if that fits the config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lightning_t2drl.errors import UserError
from lightning_t2drl.run.schemas import TrainerConfig

# The variables by which torchrun, Slurm, LSF and Lightning's own launcher tell a process its place among others.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID")


def processes(trainer: TrainerConfig) -> int:
    """How many processes a config asks for, on all nodes together."""
    devices = trainer.devices
    if devices == "auto":
        gpus = trainer.accelerator in ("gpu", "auto") and torch.cuda.is_available()
        devices = torch.cuda.device_count() if gpus else 1
    return int(devices) * trainer.num_nodes


@contextmanager
def launched(trainer: TrainerConfig) -> Iterator[tuple[ClusterEnvironment, list[str]]]:
    """Decide which launcher to believe, and hide variables of others while the run lasts.

    Lightning believes any of these variables: a single run would take itself for one of many, write nothing, and end
    with status 0. Its saving and requeueing under Slurm is kept out as well; the project's own resume is exact.

    Yields:
        Lightning's environment for the launcher, and the variables that are ignored.

    Raises:
        UserError: processes were started, but another number than the config asks for.
    """
    environment = _environment(trainer, os.environ)
    ignored = {}
    if type(environment) is LightningEnvironment and not _started_by_hand(trainer, os.environ):
        keep = ("NODE_RANK", "GROUP_RANK") if trainer.num_nodes > 1 else ()
        ignored = {name: os.environ.pop(name) for name in RANKS + SIZES if name in os.environ and name not in keep}
    lightning: Any = rank_zero_only  # by this Lightning decides which process prints and writes
    before = lightning.rank
    if ignored:
        lightning.rank = 0
    try:
        yield environment, [f"{name}={value}" for name, value in ignored.items()]
    finally:
        os.environ.update(ignored)
        lightning.rank = before


def _environment(trainer: TrainerConfig, variables: Mapping[str, str]) -> ClusterEnvironment:
    wanted = processes(trainer)
    if wanted == 1 and trainer.strategy == "auto":
        return LightningEnvironment()
    asked = f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} ask for {wanted}"
    if {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"} <= variables.keys():
        if _number(variables, "WORLD_SIZE") != wanted:
            raise UserError(f"trainer.devices: torchrun started {variables['WORLD_SIZE']} process(es), {asked}")
        return TorchElasticEnvironment()
    if {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID"} <= variables.keys():  # srun's, not those of a batch script
        tasks = _number(variables, "SLURM_STEP_NUM_TASKS") or _number(variables, "SLURM_NTASKS")
        if tasks == wanted:
            try:
                return SLURMEnvironment(auto_requeue=False)
            except RuntimeError as error:
                raise UserError(f"trainer: Slurm's variables do not fit: {error}") from None
        if tasks and tasks > 1:
            raise UserError(f"trainer.devices: srun started {tasks} processes, {asked}")
    return LightningEnvironment()


def _started_by_hand(trainer: TrainerConfig, variables: Mapping[str, str]) -> bool:
    """Whether Lightning's launcher, or somebody who does as it does, started this process as one of several."""
    named = {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= variables.keys()
    several = trainer.strategy == "ddp" or processes(trainer) > 1
    return named and several and _number(variables, "WORLD_SIZE") == processes(trainer)


def _number(variables: Mapping[str, str], name: str) -> int | None:
    value = variables.get(name, "")
    return int(value) if value.isdigit() else None
