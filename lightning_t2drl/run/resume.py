"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import in_order, newest_good, resolve
from lightning_t2drl.run.schemas import TrainConfig

# What may differ between a checkpoint's config and the resumed run's without changing what is computed.
HARMLESS = ("name", "frames", "output_dir", "resume", "progress_bar", "figures", "logger", "checkpoint", "evaluation")
HARMLESS_NESTED = ("trainer.accelerator", "trainer.threads", "trainer.num_nodes", "trainer.devices", "env.name")


def resume_from(config: TrainConfig, plain: dict[str, Any], console: Console) -> tuple[Path, int] | None:
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
    own = checkpoint[run_state.KEY]
    if own["format"] != run_state.FORMAT:
        raise UserError(
            f"resume: the checkpoint was written by lightning_t2drl {own['version']}, whose runs only that version can "
            "go on with; this one evaluates and exports it"
        )
    now, then = flatten(plain), flatten(own["config"])
    different = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    harmless = [k for k in different if k.split(".")[0] in HARMLESS or k in HARMLESS_NESTED]
    breaking = [k for k in different if k not in harmless]
    if breaking:
        listed = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in breaking)
        raise UserError(f"resume: the checkpoint was made with another config: {listed}")
    shown = [key for key in harmless if key not in ("resume", "output_dir")]
    if shown:
        console.print("differs from the checkpoint's config, harmlessly: " + ", ".join(shown))
