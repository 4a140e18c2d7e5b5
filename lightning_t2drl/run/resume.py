"""Where on its timeline a run starts: at its beginning, from a checkpoint of its own, or as a branch of another run.

`choose` only looks and refuses; `prepare` then makes the directory hold that one timeline. Whatever instant a kill
comes at, the next `resume=auto` chooses the same.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import copy_atomically, link_atomically, remove_leftovers, sync_directory
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import (
    BEST,
    DamagedCheckpoint,
    frame_of,
    in_order,
    load_checkpoint,
    resolve,
    set_aside,
)
from lightning_t2drl.loop.distributed import is_rank_zero
from lightning_t2drl.loop.stored import flatten
from lightning_t2drl.registry import locate
from lightning_t2drl.run.identity import Identity, Parent, new_identity, read_identity, write_identity
from lightning_t2drl.run.loggers import CSV_FILES, check_files
from lightning_t2drl.run.schemas import EnvConfig, TrainConfig

Say = Callable[[str], None]

CONFIG = "config.yaml"
SUMMARY = "summary.json"  # written last: the run is finished for the frames that it names
END = (SUMMARY, "evaluation.json", "figures")  # what a finished run leaves, the mark first

# What may differ between a checkpoint's config and the resumed run's without changing what is computed.
HARMLESS = ("name", "frames", "output_dir", "resume", "progress_bar", "figures", "logger", "checkpoint", "evaluation")
HARMLESS_NESTED = (
    "trainer.accelerator",
    "trainer.threads",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.strategy",
    "env.name",
)
NO_DIFFERENCE = ("output_dir", "resume", "progress_bar")  # not worth a word


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Args:
        identity: of the run; the directory's own, or a new one.
        path: the checkpoint to go on from; None at the beginning.
        content: of that checkpoint.
        damaged: newer checkpoints that cannot be read.
        finished: whether nothing is left to do.
    """

    identity: Identity
    path: Path | None = None
    content: dict[str, Any] | None = None
    damaged: tuple[Path, ...] = ()
    finished: bool = False

    @property
    def frame(self) -> int:
        return 0 if self.content is None else self.content[run_state.KEY]["frame"]


# -- choosing


def choose(config: TrainConfig, plain: dict[str, Any], directory: Path, say: Say) -> Start:
    """Decide where the run in `directory` starts; nothing is written.

    Args:
        config: what is asked for.
        plain: the same as plain data; `schedule_frames` is filled in, as a resumed run keeps its schedules.
        directory: where the run writes.
        say: told what the user should know.

    Raises:
        UserError: the directory holds something else, there is no checkpoint to be had, or it does not fit `config`.
    """
    if config.resume is None:
        if _held(directory) and is_rank_zero():  # to the other ranks, rank 0 has begun already
            raise UserError(f"output_dir: {directory} is not empty; resume=auto goes on with it, or choose another")
        start = Start(new_identity())
    elif config.resume == "auto":
        start = _newest(directory, say)
    else:
        start = _from_file(config.resume, directory, say)
    if start.content is None:
        plain["schedule_frames"] = config.schedule_frames or config.frames
        return start
    check_files(directory)
    _keep_schedules(config, plain, start.content, say)
    _check_compatible(plain, start.content, say)
    if start.frame > config.frames:
        raise UserError(f"frames: the checkpoint is at frame {start.frame} already, past frames={config.frames}")
    return replace(start, finished=start.frame == config.frames and _finished(plain, directory))


def _held(directory: Path) -> list[str]:
    """Names in a directory, but for what this program puts there before a run begins."""
    return [path.name for path in directory.glob("*") if not path.name.startswith(".")]


def _newest(directory: Path, say: Say) -> Start:
    """From the newest good checkpoint of the run in `directory`."""
    held, identity = _held(directory), read_identity(directory)
    if held and identity is None and CONFIG not in held:
        raise UserError(f"resume: {directory} holds no run to go on with")
    files, damaged = in_order(directory / "checkpoints"), []
    if identity is not None and identity.cut is not None:
        files = [path for path in files if frame_of(path) <= identity.cut]
    for path in reversed(files):
        try:
            content = load_checkpoint(path)
        except DamagedCheckpoint as error:
            say(f"set aside: {error}")
            damaged.append(path)
            continue
        except UserError:
            if path.exists():
                raise
            continue  # rank 0 has just set it aside
        own = _own(content)
        identity = identity or Identity(own["run_id"])  # run.json was deleted
        if identity.owns(own["run_id"], own["frame"]):
            return Start(identity, path, content, tuple(damaged))
        raise UserError(f"{path} belongs to another run than the rest of {directory}; move it away")
    if files:
        raise UserError(f"{directory}: holds no checkpoint that can be read")
    if identity is not None and identity.parent is not None:  # a branch that was killed before it had a checkpoint
        return _from_file(identity.parent.checkpoint, directory, say)
    if SUMMARY in held:
        raise UserError(
            f"resume: {directory} holds a finished run, but none of its checkpoints; choose another output_dir"
        )
    say(f"{directory} holds no checkpoint yet: beginning")
    return Start(identity or new_identity())


def _from_file(name: str, directory: Path, say: Say) -> Start:
    """From a checkpoint that was named: within the run it belongs to, or as a branch in an empty directory."""
    path, content = resolve(name, say)
    own = _own(content)
    run_id, frame = own["run_id"], own["frame"]
    held, identity = _held(directory), read_identity(directory)
    if not held:
        say(f"a branch of run {run_id} begins in {directory}")
        return Start(new_identity(Parent(run_id, frame, str(path.resolve()))), path, content)
    if identity is None:
        if CONFIG not in held or path.resolve().parent != (directory / "checkpoints").resolve():
            raise UserError(f"output_dir: {directory} is not empty; a branch of {path} needs a directory of its own")
        identity = Identity(run_id)  # run.json was deleted
    if not identity.owns(run_id, frame):
        raise UserError(f"output_dir: {directory} holds another run than {path}; a branch needs a directory of its own")
    later = [frame_of(p) for p in in_order(directory / "checkpoints") if frame_of(p) > frame]
    if later:
        say(f"cut away: what {directory} holds after frame {frame}, up to frame {max(later)}")
    return Start(replace(identity, cut=frame), path, content)


def _own(content: dict[str, Any]) -> dict[str, Any]:
    """The project's own part of a checkpoint that a run can go on from; raises `UserError` if this is not one."""
    own = content[run_state.KEY]
    if own["format"] != run_state.FORMAT:
        raise UserError(
            f"resume: the checkpoint was written by lightning_t2drl {own['version']}, whose runs only that version can "
            "go on with; this one evaluates and exports it"
        )
    missing = [part for part in ("optimizer_states", "callbacks", "loops") if part not in content]
    if missing or not own["config"]:
        raise UserError(f"resume: the checkpoint holds a policy, not a run: it has no {(missing or ['config'])[0]!r}")
    return own


def _finished(plain: dict[str, Any], directory: Path) -> bool:
    """Whether the mark of a finished run is there, for these frames and by this config."""
    try:
        frame = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))["frame"]
        before = OmegaConf.to_container(OmegaConf.load(directory / CONFIG))
    except Exception:  # torn, missing, of another kind: then the end is done again
        return False
    return frame == plain["frames"] and not [k for k in _different(plain, before) if k not in NO_DIFFERENCE]


# -- does it fit?


def _then(plain: dict[str, Any], stored: Any) -> dict[str, Any]:
    """What a stored config said of each dotted key; one of `env` or a class that came later was at its default."""
    now, then = flatten(plain), flatten(stored)
    default = flatten({"env": OmegaConf.to_container(OmegaConf.structured(EnvConfig))})
    for key, target in now.items():
        if key.endswith("._target_") and then.get(key) == target:
            fields = dataclasses.fields(locate(target, key).Config)
            of_class = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
            default |= {key.replace("_target_", name): value for name, value in of_class.items()}
    return {key: default[key] for key in now if key in default} | then


def _different(plain: dict[str, Any], stored: Any) -> list[str]:
    """Dotted keys whose values differ from those of a stored config."""
    now, then = flatten(plain), _then(plain, stored)
    return sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))


def _keep_schedules(config: TrainConfig, plain: dict[str, Any], content: dict[str, Any], say: Say) -> None:
    """Let schedules end where they were to end when the run began, however long it becomes."""
    stored = content[run_state.KEY]["config"]
    end = plain["schedule_frames"] = config.schedule_frames or stored.get("schedule_frames", config.frames)
    if config.frames > end:
        kind = "learning_rate_schedule"
        parts = [k.removesuffix(f".{kind}") for k, v in flatten(plain).items() if k.endswith(kind) and v == "cosine"]
        what = f"; from there on nothing more is learned by {' and '.join(parts)} ({kind}=cosine)" if parts else ""
        say(f"after frame {end} (schedule_frames) schedules stay at their end values{what}")


def _check_compatible(plain: dict[str, Any], content: dict[str, Any], say: Say) -> None:
    """Refuse to resume with a config that would compute something else; name harmless differences."""
    stored = content[run_state.KEY]["config"]
    now, then = flatten(plain), _then(plain, stored)
    different = _different(plain, stored)
    harmless = [k for k in different if k.split(".")[0] in HARMLESS or k in HARMLESS_NESTED]
    breaking = [k for k in different if k not in harmless]
    if breaking:
        listed = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in breaking)
        raise UserError(f"resume: the checkpoint was made with another config: {listed}")
    shown = [key for key in harmless if key not in NO_DIFFERENCE]
    if shown:
        say("changed since the checkpoint, and allowed to: " + ", ".join(shown))


# -- preparing


def prepare(start: Start, directory: Path) -> None:
    """Make `directory` hold the timeline that ends where the run starts, and no other.

    Killed anywhere in here, the next `choose` comes to the same start: what is added belongs to the timeline, and what
    is to go is not looked at once `run.json` says so.
    """
    for path in start.damaged:
        set_aside(path)
    settled = replace(start.identity, cut=None)
    if read_identity(directory) is None:
        write_identity(directory, settled)
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for place in (directory, checkpoints):
        remove_leftovers(place)
    if start.path is not None:
        _install(start.path, start.frame, directory)
    if start.identity.cut is not None:
        write_identity(directory, start.identity)
        for path in reversed(in_order(checkpoints)):
            if frame_of(path) > start.frame:
                path.unlink()
        sync_directory(checkpoints)
        write_identity(directory, settled)
    unfinish(directory)


def _install(path: Path, frame: int, directory: Path) -> None:
    """Put a checkpoint, and the rows and the best checkpoint of before it, where the run in `directory` looks."""
    own = directory / "checkpoints" / f"frame={frame:09d}.ckpt"
    if own.exists() and own.samefile(path):
        return
    elsewhere = path.resolve().parent
    if elsewhere != own.parent.resolve():
        if (elsewhere / BEST).exists():
            link_atomically(elsewhere / BEST, own.parent / BEST)
        for file in CSV_FILES:
            if (elsewhere.parent / file).exists() and not (directory / file).exists():
                copy_atomically(elsewhere.parent / file, directory / file)
    link_atomically(path, own)


def unfinish(directory: Path) -> None:
    """Take away what a finished run leaves: the run goes on."""
    for name in END:
        path = directory / name
        if path.is_dir():
            with suppress(OSError):
                shutil.rmtree(path)
        path.unlink(missing_ok=True)
