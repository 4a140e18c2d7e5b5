"""One training run from a checked config: what `train.py` does."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.callbacks import FrameCheckpoint, FrameProgress, GracefulStop, PeriodicEvaluation
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import (
    AtomicCheckpointIO,
    in_order,
    load_checkpoint,
    newest_good,
    remove_leftovers,
    resolve,
    write_atomically,
)
from lightning_t2drl.loop.distributed import AlternatingDDPStrategy, is_rank_zero
from lightning_t2drl.loop.evaluation import evaluate, summarise
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.policy import derive_seed
from lightning_t2drl.run.figures import draw_run
from lightning_t2drl.run.loggers import BEGINNING, FrameWandbLogger, check_wandb_account, make_loggers
from lightning_t2drl.run.schemas import TrainConfig, build_policies
from lightning_t2drl.run.tables import improvement, schemes_table

OUTPUT_DIR_VARIABLE = "LIGHTNING_T2DRL_OUTPUT_DIR"  # tells the processes that DDP starts which directory rank 0 chose

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# What may differ between a checkpoint's config and the resumed run's without changing what is computed.
HARMLESS = ("name", "frames", "output_dir", "resume", "progress_bar", "figures", "logger", "checkpoint", "evaluation")
HARMLESS_NESTED = ("trainer.accelerator", "trainer.threads", "trainer.num_nodes", "trainer.devices", "env.name")


class Frames:
    """As many empty batches as the run has frames: Lightning's loop counts them, the module plays."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.frames))


def train(config: TrainConfig, raw: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Train as configured and return what `summary.json` holds.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it; it is saved with the run and in its checkpoints.
        overrides: the command line; not needed here.

    Raises:
        UserError: before anything is written, if the config cannot be run.
    """
    torch.set_num_threads(config.trainer.threads)
    L.seed_everything(derive_seed(config.seed, "parameters") % 2**32, verbose=False)
    scenario, cacher, allocator = build_policies(config.env, config.cacher, config.allocator)
    module = TwoTimescaleModule(
        scenario, cacher, allocator, config.loop, config.env.num_envs, config.frames, config.seed, config.compile
    )
    _check_compilable(config, allocator)
    console = Console(stderr=False, quiet=not is_rank_zero())
    _check_hardware(config)
    check_wandb_account(config)
    plain: dict[str, Any] = OmegaConf.to_container(raw, resolve=True)  # type: ignore[assignment]
    resumed = _resume_from(config, plain, console)
    with output_directory(config) as directory:
        try:
            return _run(config, plain, module, directory, resumed, console)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = error.filename or directory
            raise UserError(f"{where}: cannot be written ({error.strerror}); checkpoints are intact") from None


def _check_hardware(config: TrainConfig) -> None:
    t = config.trainer
    if torch.cuda.is_available():
        return
    if t.accelerator == "gpu":
        raise UserError("trainer.accelerator: gpu, but PyTorch sees no CUDA device; use trainer=cpu")
    if t.precision == "16-mixed":
        raise UserError("trainer.precision: 16-mixed needs a GPU; use bf16-mixed or 32-true")


def _check_compilable(config: TrainConfig, allocator: Allocator) -> None:
    """The compiled update knows neither other processes' gradients nor mixed precision.

    Raises:
        UserError: naming what stands in the way.
    """
    if not config.compile:
        return
    if config.trainer.strategy != "auto" or config.trainer.precision != "32-true":
        raise UserError("compile: true needs one process and trainer.precision=32-true")
    if not isinstance(allocator, ActorCriticAllocator):
        raise UserError(f"compile: {type(allocator).__name__} has no gradient update to compile")


def _run(
    config: TrainConfig,
    plain: dict[str, Any],
    module: TwoTimescaleModule,
    directory: Path,
    resumed: tuple[Path, int] | None,
    console: Console,
) -> dict[str, Any]:
    module.checkpoint_extra = {"config": plain}
    text = OmegaConf.to_yaml(OmegaConf.create(plain))
    checkpoint, frame = resumed or (None, BEGINNING)
    if checkpoint is None:
        console.print(f"[dim]{text}[/dim]", highlight=False)
    else:
        console.print(f"resuming from {checkpoint} at frame {frame}")
    loggers = []
    if is_rank_zero():
        remove_leftovers(directory)
        write_atomically(directory / "config.yaml", text)
        loggers = make_loggers(config, plain, directory, frame)
    stop = GracefulStop()
    saver = FrameCheckpoint(directory / "checkpoints", config.checkpoint.every_n_frames, config.checkpoint.keep)
    callbacks: list[L.Callback] = [stop, PeriodicEvaluation(config.evaluation), saver]
    if config.progress_bar:
        callbacks.insert(0, FrameProgress(console))
    trainer = make_trainer(config, loggers, callbacks)
    start = time.perf_counter()
    if checkpoint is not None and frame == config.frames:  # killed after its last frame: only the end is left
        run_state.load_parameters(module, load_checkpoint(checkpoint))
    else:
        try:
            trainer.fit(module, Frames(config.frames), ckpt_path=checkpoint and str(checkpoint), weights_only=True)
        except (
            SIGTERMException
        ):  # it came before the first frame, while Lightning's handler was in force: exit status 0
            stop.received = signal.SIGTERM
    seconds = time.perf_counter() - start
    summary = {
        "name": config.name,
        "frame": module.frame,
        "slots": module.slots,
        "gradient_steps": module.gradient_steps,
        "training_seconds": seconds,
        "checkpoint_seconds": saver.seconds,
    }
    if stop.received is not None:
        console.print(f"stopped at frame {module.frame}; go on with output_dir={directory} resume=auto")
        raise SystemExit(128 + stop.received)
    if is_rank_zero():
        summary |= _finish(config, module, directory, loggers, console)
        write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def make_trainer(config: TrainConfig, loggers: list[Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer for this loop: one epoch, one batch per frame, everything it need not do switched off."""
    t = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO()]
    strategy: Any = t.strategy
    if t.strategy == "ddp":
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
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


# -- the output directory


@contextmanager
def output_directory(config: TrainConfig) -> Iterator[Path]:
    """The run's directory, locked against a second process while the run lasts.

    Raises:
        UserError: it cannot be written, is in use, or holds another run and `resume` was not asked for.
    """
    if not is_rank_zero():
        yield Path(os.environ.get(OUTPUT_DIR_VARIABLE) or str(config.output_dir))
        return
    directory = _choose_directory(config)
    lock_path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(lock_path, "w")  # noqa: SIM115 - held for the length of the run
    except OSError as error:
        raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"output_dir: {directory} is in use by another process") from None
    try:
        if config.resume is None and any(path.name != ".lock" for path in directory.iterdir()):
            raise UserError(f"output_dir: {directory} is not empty; resume=auto goes on with it, or choose another")
        os.environ[OUTPUT_DIR_VARIABLE] = str(directory)
        yield directory
    finally:
        os.environ.pop(OUTPUT_DIR_VARIABLE, None)
        lock_path.unlink(missing_ok=True)
        lock.close()


def _choose_directory(config: TrainConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir)
    if config.resume is not None:
        raise UserError("output_dir: name the directory of the run to resume")
    base = Path("runs") / config.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(10_000):  # jobs of a sweep may start in the same second
        directory = base if attempt == 0 else base.with_name(f"{base.name}-{attempt}")
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"output_dir: {directory} cannot be written ({error.strerror})") from None
    raise UserError(f"output_dir: no free name beside {base}")


# -- resuming


def _resume_from(config: TrainConfig, plain: dict[str, Any], console: Console) -> tuple[Path, int] | None:
    """The checkpoint to go on from and its frame, or None to begin.

    Raises:
        UserError: there is none to be had, it was made with another config, or the run is finished.
    """
    if config.resume is None:
        return None

    def say(text: str) -> None:
        console.print(text, style="yellow")

    if config.resume == "auto":
        if config.output_dir is None:
            raise UserError("resume: auto needs output_dir, the directory of the run to go on with")
        if _never_saved(Path(config.output_dir)):
            say(f"{config.output_dir} holds no checkpoint yet: beginning")
            return None
        path, checkpoint = newest_good(Path(config.output_dir) / "checkpoints", say)
    else:
        path, checkpoint = resolve(config.resume, say)
    _check_compatible(plain, checkpoint, console)
    frame = checkpoint[run_state.KEY]["frame"]
    finished = config.output_dir is not None and (Path(config.output_dir) / "summary.json").exists()
    if frame > config.frames or (frame == config.frames and finished):
        raise UserError(
            f"frames: the checkpoint is at frame {frame} already; frames={config.frames} leaves nothing to do"
        )
    return path, frame


def _never_saved(directory: Path) -> bool:
    """Whether there is nothing to go on from: no run was begun in `directory`, or none lived to its first checkpoint.

    Raises:
        UserError: what `directory` holds is no run.
    """
    visible = [path.name for path in directory.glob("*") if not path.name.startswith(".")]
    if visible and "config.yaml" not in visible:
        raise UserError(f"resume: {directory} holds no run to go on with")
    return not in_order(directory / "checkpoints")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted key: value}."""
    if not isinstance(values, dict):
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def _check_compatible(plain: dict[str, Any], checkpoint: dict[str, Any], console: Console) -> None:
    """Refuse to resume with a config that would compute something else; name harmless differences."""
    now, then = flatten(plain), flatten(checkpoint[run_state.KEY]["config"])
    different = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    harmless = [k for k in different if k.split(".")[0] in HARMLESS or k in HARMLESS_NESTED]
    breaking = [k for k in different if k not in harmless]
    if breaking:
        listed = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in breaking)
        raise UserError(f"resume: the checkpoint was made with another config: {listed}")
    shown = [key for key in harmless if key not in ("resume", "output_dir")]
    if shown:
        console.print("differs from the checkpoint's config, harmlessly: " + ", ".join(shown))


# -- the end of a run


def _finish(
    config: TrainConfig, module: TwoTimescaleModule, directory: Path, loggers: list[Any], console: Console
) -> dict[str, Any]:
    """Final evaluation beside random caching with equal split, figures, W&B artifacts."""
    results = None
    summary: dict[str, Any] = {}
    if config.evaluation.final_episodes:
        results = final_evaluation(config, module)
        write_atomically(directory / "evaluation.json", json.dumps(results, indent=2) + "\n")
        console.print(schemes_table(results))
        ours, reference = results["schemes"][config.name], results["schemes"]["random+equal"]
        for key, label in (("hit_ratio", "model hit ratio"), ("total_utility", "total utility")):
            summary[f"{key}_improvement_percent"] = improvement(ours, reference, key)
            console.print(
                f"{label}: {summary[f'{key}_improvement_percent']:+.2f} % over random caching with equal split"
            )
        summary["total_utility"] = ours["total_utility"]["mean"]
        summary["hit_ratio"] = ours["hit_ratio"]["mean"]
    figures = draw_run(directory, results) if config.figures else []
    console.print(
        f"results in {directory}: " + ", ".join(sorted(p.name for p in directory.iterdir() if p.name[0] != "."))
    )
    checkpoint = in_order(directory / "checkpoints")[-1] if config.logger.log_checkpoint else None
    final = {} if results is None else {k: v["mean"] for k, v in results["schemes"][config.name].items()}
    for logger in loggers:
        if isinstance(logger, FrameWandbLogger):
            logger.log_results(module.frame, figures, checkpoint, final)
    return summary


def final_evaluation(config: TrainConfig, module: TwoTimescaleModule) -> dict[str, Any]:
    """The trained pair and random caching with equal split on the same worlds, as `evaluation.json` holds it."""
    scenario = module.scenario.to("cpu")
    pairs = {
        config.name: (module.cacher.cpu(), module.allocator.cpu()),
        "random+equal": (RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())),
    }
    e = config.evaluation
    schemes = {name: summarise(evaluate(scenario, *pair, e.final_episodes, e.seed)) for name, pair in pairs.items()}
    return {
        "name": config.name,
        "scenario": scenario.name,
        "episodes": e.final_episodes,
        "seed": e.seed,
        "deadline": scenario.deadline,
        "schemes": schemes,
    }
