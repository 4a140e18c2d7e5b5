"""One training run from a checked config: what `train.py` does."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from callbacks import FrameCheckpoint, FrameProgress, GracefulStop, PeriodicEvaluation
from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.checkpoints import AtomicCheckpointIO, newest_good, resolve
from lightning_t2drl.config import TrainConfig, build_policies
from lightning_t2drl.distributed import AlternatingDDPStrategy, is_rank_zero
from lightning_t2drl.errors import UserError
from lightning_t2drl.evaluation import evaluate, summarise
from lightning_t2drl.loggers import FrameCSVLogger, make_loggers
from lightning_t2drl.policy import derive_seed
from lightning_t2drl.reporting.figures import draw_run
from lightning_t2drl.reporting.tables import improvement, schemes_table
from lightning_t2drl.run_state import KEY
from lightning_t2drl.two_timescale import TwoTimescaleModule

OUTPUT_DIR_VARIABLE = "LIGHTNING_T2DRL_OUTPUT_DIR"  # tells the processes that DDP starts which directory rank 0 chose

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
        scenario, cacher, allocator, config.loop, config.env.num_envs, config.frames, config.seed
    )
    console = Console(stderr=False, quiet=not is_rank_zero())
    checkpoint = _checkpoint_to_resume(config, console)
    plain: dict[str, Any] = OmegaConf.to_container(raw, resolve=True)  # type: ignore[assignment]
    if checkpoint is not None:
        _check_compatible(plain, checkpoint[1], console)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: gpu, but PyTorch sees no CUDA device; use trainer=cpu")
    with output_directory(config) as directory:
        return _run(config, plain, module, directory, checkpoint, console)


def _run(
    config: TrainConfig,
    plain: dict[str, Any],
    module: TwoTimescaleModule,
    directory: Path,
    checkpoint: tuple[Path, dict[str, Any]] | None,
    console: Console,
) -> dict[str, Any]:
    module.checkpoint_extra = {"config": plain}
    if is_rank_zero():
        (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
        if checkpoint is None:
            console.print(f"[dim]{OmegaConf.to_yaml(OmegaConf.create(plain))}[/dim]", highlight=False)
    loggers = make_loggers(config, directory)
    if checkpoint is not None:
        frame = checkpoint[1][KEY]["frame"]
        console.print(f"resuming from {checkpoint[0]} at frame {frame}")
        if is_rank_zero():
            for logger in loggers:
                if isinstance(logger, FrameCSVLogger):
                    logger.truncate(frame)
    stop = GracefulStop()
    saver = FrameCheckpoint(directory / "checkpoints", config.checkpoint.every_n_frames, config.checkpoint.keep)
    callbacks: list[L.Callback] = [stop, PeriodicEvaluation(config.evaluation), saver]
    if config.progress_bar:
        callbacks.insert(0, FrameProgress(console))
    trainer = make_trainer(config, loggers, callbacks)
    start = time.perf_counter()
    trainer.fit(module, Frames(config.frames), ckpt_path=checkpoint and str(checkpoint[0]), weights_only=True)
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
        (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
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


def _checkpoint_to_resume(config: TrainConfig, console: Console) -> tuple[Path, dict[str, Any]] | None:
    if config.resume is None:
        return None

    def say(text: str) -> None:
        console.print(text, style="yellow")

    if config.resume == "auto":
        if config.output_dir is None:
            raise UserError("resume: auto needs output_dir, the directory of the run to go on with")
        directory = Path(config.output_dir) / "checkpoints"
        if not directory.is_dir() and not Path(config.output_dir).exists():
            raise UserError(f"resume: {config.output_dir} does not exist")
        found = newest_good(directory, say)
    else:
        found = resolve(config.resume, say)
    frame = found[1][KEY]["frame"]
    if frame >= config.frames:
        raise UserError(
            f"frames: the checkpoint is at frame {frame} already; frames={config.frames} leaves nothing to do"
        )
    return found


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
    now, then = flatten(plain), flatten(checkpoint[KEY]["config"])
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
        (directory / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
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
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_artifacts(config, logger, directory, figures, results)
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


def _log_artifacts(
    config: TrainConfig, logger: WandbLogger, directory: Path, figures: list[Path], results: dict[str, Any] | None
) -> None:
    import wandb

    run = logger.experiment
    run.config.update(
        json.loads(json.dumps(OmegaConf.to_container(OmegaConf.load(directory / "config.yaml")))), allow_val_change=True
    )
    run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures} | {"frame": config.frames})
    if results is not None:
        ours = results["schemes"][config.name]
        run.summary.update({f"final/{key}": value["mean"] for key, value in ours.items()})
    if config.logger.log_checkpoint:
        artifact = wandb.Artifact(f"{config.name}-seed{config.seed}-checkpoint", type="checkpoint")
        for path in sorted((directory / "checkpoints").glob("*.ckpt"))[-1:]:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
    wandb.finish()
