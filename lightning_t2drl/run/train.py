"""One training run from a checked config: what `train.py` does."""

from __future__ import annotations

import errno
import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.building import build_policies
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.callbacks import FrameCheckpoint, FrameProgress, GracefulStop, PeriodicEvaluation
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import as_json, write_atomically
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO
from lightning_t2drl.loop.distributed import AlternatingDDPStrategy, is_rank_zero
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.run.finish import finish_run
from lightning_t2drl.run.launch import launched, processes
from lightning_t2drl.run.loggers import BEGINNING, check_wandb_account, make_loggers
from lightning_t2drl.run.output_dir import output_directory
from lightning_t2drl.run.results_dir import point_latest
from lightning_t2drl.run.resume import CONFIG, SUMMARY, Start, choose, prepare
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.run.screen import at, console, opening
from lightning_t2drl.run.sizes import check_learning, check_sizes, idle_learners
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class Frames:
    """As many empty batches as the run has frames: Lightning's loop counts them, the module plays."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.frames))


def train(
    config: TrainConfig, raw: DictConfig, overrides: list[str], watching: Sequence[L.Callback] = ()
) -> dict[str, Any]:
    """Train as configured and return what `summary.json` holds.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it; it is saved with the run and in its checkpoints.
        overrides: the command line; the first screen says what it changes.
        watching: more callbacks, after those of evaluations.

    Raises:
        UserError: before anything is written, if the config cannot be run.
    """
    torch.set_num_threads(config.trainer.threads)
    L.seed_everything(derive_seed(config.seed, "parameters") % 2**32, verbose=False)
    check_learning(config.loop)
    scenario, cacher, allocator = _build(config)
    module = TwoTimescaleModule(
        scenario, cacher, allocator, config.loop, config.env.num_envs, config.frames, config.seed, config.compile
    )
    _check_hardware(config)
    check_sizes(config, module)
    check_wandb_account(config)
    plain: dict[str, Any] = OmegaConf.to_container(raw, resolve=True)  # type: ignore[assignment]
    with launched(config.trainer) as (environment, ignored), output_directory(config) as directory:
        screen = console(quiet=not is_rank_zero())
        opened = opening(config, plain, overrides, module)
        if ignored:
            screen.print(f"ignored: {', '.join(ignored)}, as this process is not one of several", style="yellow")
        start = choose(config, plain, directory, lambda text: screen.print(text, style="yellow"))
        for line in idle_learners(config, scenario, cacher, allocator):
            screen.print(line, style="yellow")
        if start.finished:
            screen.print(f"{directory} is finished at frame {start.frame}; nothing is left to do")
            return json.loads((directory / SUMMARY).read_text(encoding="utf-8")) | {"output_dir": str(directory)}
        try:
            if is_rank_zero():
                prepare(start, directory)
            if is_rank_zero() and config.output_dir is None:
                point_latest(directory)
            summary = _run(config, plain, module, directory, start, environment, opened, screen, watching)
            return summary | {"output_dir": str(directory)}
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = error.filename or directory
            raise UserError(f"{where}: cannot be written ({error.strerror}); checkpoints are intact") from None


def _build(config: TrainConfig) -> tuple[Scenario, Cacher, Allocator]:
    try:
        return build_policies(config.env, config.cacher, config.allocator)
    except (MemoryError, RuntimeError) as error:  # PyTorch has no class of its own for it on the CPU
        reason = next(iter(str(error).splitlines()), "")
        if isinstance(error, RuntimeError) and "memory" not in reason:
            raise
        raise UserError(f"cacher, allocator: too large for the memory there is ({reason})") from None


def _check_hardware(config: TrainConfig) -> None:
    t = config.trainer
    if torch.cuda.is_available():
        return
    if t.accelerator == "gpu":
        raise UserError("trainer.accelerator: gpu, but PyTorch sees no CUDA device; use trainer=cpu")
    if t.precision == "16-mixed":
        raise UserError("trainer.precision: 16-mixed needs a GPU; use bf16-mixed or 32-true")


def _run(
    config: TrainConfig,
    plain: dict[str, Any],
    module: TwoTimescaleModule,
    directory: Path,
    start: Start,
    environment: ClusterEnvironment,
    opened: str,
    screen: Console,
    watching: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    module.checkpoint_extra = {"config": plain, "run_id": start.identity.run_id}
    module.schedule_frames = plain["schedule_frames"]
    text = OmegaConf.to_yaml(OmegaConf.create(plain))
    if start.path is None:
        screen.print(opened)
        screen.print(at(directory))
    else:
        screen.print(f"resuming from {start.path} at frame {start.frame}")
    loggers = []
    if is_rank_zero():
        write_atomically(directory / CONFIG, text)
        frame = BEGINNING if start.path is None else start.frame
        loggers = make_loggers(config, plain, directory, frame, start.identity.run_id, screen.print)
    stop = GracefulStop()
    saver = FrameCheckpoint(directory / "checkpoints", config.checkpoint.every_n_frames, config.checkpoint.keep)
    callbacks: list[L.Callback] = [stop, PeriodicEvaluation(config.evaluation), *watching, saver]
    if config.progress_bar:
        callbacks.insert(0, FrameProgress(screen))
    trainer = make_trainer(config, environment, directory, loggers, callbacks)
    clock = time.perf_counter()
    if start.content is not None and start.frame == config.frames:  # killed after its last frame: only the end is left
        run_state.load_parameters(module, start.content)
        saver.load_state_dict(start.content["callbacks"][saver.state_key])
        saver.settle()
    else:
        path = None if start.path is None else str(start.path)
        try:
            trainer.fit(module, Frames(config.frames), ckpt_path=path, weights_only=True)
        except SIGTERMException:  # before the first frame, while Lightning's handler is in force; it means status 0
            stop.received = signal.SIGTERM
    summary = {
        "name": config.name,
        "run_id": start.identity.run_id,
        "frame": module.frame,
        "slots": module.slots,
        "gradient_steps": module.gradient_steps,
        "training_seconds": time.perf_counter() - clock,
        "checkpoint_seconds": saver.seconds,
        "checkpoints": saver.saved,
    }
    if stop.received is not None:
        screen.print(f"stopped at frame {module.frame}; go on with output_dir={directory} resume=auto")
        for logger in loggers:
            logger.finalize("stopped")
        raise SystemExit(128 + stop.received)
    if is_rank_zero():
        summary |= finish_run(config, module, directory, loggers, screen)
        write_atomically(directory / SUMMARY, as_json(summary))
    return summary


def make_trainer(
    config: TrainConfig,
    environment: ClusterEnvironment,
    directory: Path,
    loggers: list[Any],
    callbacks: list[L.Callback],
) -> L.Trainer:
    """Lightning's Trainer for this loop: one epoch, one batch per frame, and nothing that the loop does not need."""
    t = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO(), environment]
    strategy: Any = t.strategy
    if t.strategy == "ddp" or processes(t) > 1:
        # On CPU tensors NCCL cannot be used, whatever PyTorch would choose by what is built in.
        backend = "gloo" if t.accelerator == "cpu" or not torch.cuda.is_available() else "nccl"
        strategy = AlternatingDDPStrategy(process_group_backend=backend)
    return L.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.num_nodes,
        strategy=strategy,
        precision=t.precision,  # type: ignore[arg-type]
        logger=loggers,
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=directory,  # Lightning looks for checkpoints of its own there, and must find none
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
