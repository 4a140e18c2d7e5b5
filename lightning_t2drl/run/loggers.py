"""Loggers without gaps or duplicates after interruptions: CSV files, W&B and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import sync, write_atomically
from lightning_t2drl.run.schemas import TrainConfig

EVALUATION = "evaluation/"
COUNTERS = ("frame", "slots", "gradient_steps")
METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"
CSV_FILES = (METRICS, EVALUATIONS)
WANDB = "wandb.json"
BEGINNING = -1  # the frame at which a run begins that is not resumed: before the evaluation at frame 0
OFFLINE = "logger.offline=true needs neither account nor network"

Row = dict[str, float]


class FrameCSVLogger(Logger):
    """One row per logged frame in `metrics.csv`, one per evaluation in `evaluations.csv`, each with the run's id.

    Rows are on disk as soon as they are logged. A new column rewrites the file (there are losses only after the
    warm-up).

    Args:
        directory: where the files are.
        frame: where the run goes on; rows after it, and a row that a kill has torn, are dropped.
        run_id: of the run.
    """

    def __init__(self, directory: Path, frame: int, run_id: str) -> None:
        super().__init__()
        self.directory = directory
        self.run_id = run_id
        self._columns: dict[str, list[str]] = {}
        for file in CSV_FILES:
            path = directory / file
            if path.exists():
                columns, rows = read_csv(path)
                kept = [row for row in rows if (row["frame"] or "").isdigit() and None not in row.values()]
                self._rewrite(path, columns, [row for row in kept if int(row["frame"]) <= frame])
                self._columns[file] = columns

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.run_id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config is saved in the output directory."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        evaluation = any(key.startswith(EVALUATION) for key in metrics)
        row: dict[str, Any] = {"frame": step, "run": self.run_id}
        row |= {key.removeprefix(EVALUATION): value for key, value in metrics.items()}
        file = EVALUATIONS if evaluation else METRICS
        path = self.directory / file
        columns = self._columns.setdefault(file, [])
        missing = [key for key in row if key not in columns]
        if missing:
            columns += missing
            self._rewrite(path, columns, read_csv(path)[1] if path.exists() else [])
        with open(path, "a", newline="", encoding="utf-8") as target:
            csv.DictWriter(target, columns, restval="").writerow(row)
            target.flush()
            sync(target.fileno())

    def rows(self) -> dict[int, Row]:
        """What the files hold, as it was logged: by frame, metrics and evaluations together."""
        out: dict[int, Row] = {}
        for file in CSV_FILES:
            path = self.directory / file
            for row in read_csv(path)[1] if path.exists() else []:
                prefix = EVALUATION if file == EVALUATIONS else ""
                named = {key if key in COUNTERS else prefix + key: value for key, value in row.items() if key != "run"}
                out.setdefault(int(row["frame"]), {}).update(
                    {key: float(value) if key not in COUNTERS else int(value) for key, value in named.items() if value}
                )
        return dict(sorted(out.items()))

    @staticmethod
    def _rewrite(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
        target = io.StringIO()
        writer = csv.DictWriter(target, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, target.getvalue())


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a file that `FrameCSVLogger` has written.

    Raises:
        UserError: it is something else.
    """
    try:
        with open(path, newline="", encoding="utf-8") as source:
            reader = csv.DictReader(source)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not the table of a run ({error}); move it away, and its rows are lost") from None
    if "frame" not in columns and (columns or rows):
        raise UserError(f"{path}: not the table of a run (it has no column frame); move it away, and its rows are lost")
    return columns, rows


def check_files(directory: Path) -> None:
    """Raise `UserError`, naming the file, where what loggers are to go on with cannot be read."""
    for file in CSV_FILES:
        if (directory / file).exists():
            read_csv(directory / file)
    _read_marker(directory / WANDB)


def _read_marker(path: Path) -> dict[str, Any]:
    """What `wandb.json` holds; nothing where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["id"], str):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete it, and W&B gets all rows again as a run of its own") from None
    return content


class FrameWandbLogger(Logger):
    """One W&B run per output directory, however often it is interrupted; metrics are plotted against `frame`.

    W&B gets each frame's row once. Rows wait for the checkpoint that covers them, so none is sent that a resumed run
    plays again. A kill may still lose some that were handed over; the CSV files have them, and after a resume those are
    sent that W&B has not: online its server says how far it came; offline the files of a session that did not end are
    replaced.

    `wandb.json` keeps the run's W&B id, unless a sweep's agent dictates it, and which sessions ended at which frame.
    The API key stays where W&B looks for it.

    Args:
        config: whose `logger` section says where to and under which labels.
        plain: the composed config, logged with the run.
        directory: of the run; W&B's own files go to `wandb/` in it.
        run_id: of the run.
        rows: of the CSV files, up to where the run goes on.
        say: told what the user should know.

    Raises:
        UserError: W&B does not take the run: no network, no such entity, not logged in.
    """

    def __init__(
        self,
        config: TrainConfig,
        plain: dict[str, Any],
        directory: Path,
        run_id: str,
        rows: dict[int, Row],
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        import wandb

        c = config.logger
        self._marker = directory / WANDB
        self._waiting: dict[int, Row] = {}
        known = _read_marker(self._marker)
        # Until here it kept the id alone, and its sessions count as complete.
        legacy = max(rows, default=BEGINNING) if known and "sent" not in known else BEGINNING
        wandb_id = os.environ.get("WANDB_RUN_ID") or known.get("id") or run_id
        self._ended: list[str] | None = known.get("ended", [] if not legacy > BEGINNING else None)
        self._sent: int = known.get("sent", legacy) if known.get("id", wandb_id) == wandb_id else BEGINNING
        self._note(wandb_id)
        if c.offline and self._ended is not None:
            _remove_sessions(directory / "wandb", wandb_id, self._ended, say)
        try:
            self.run = wandb.init(
                project=c.project,
                entity=c.entity,
                name=f"{config.name}-seed{config.seed}",
                group=c.group or config.name,
                job_type=c.job_type,
                tags=c.tags,
                id=wandb_id,
                resume="allow",
                mode="offline" if c.offline else None,
                dir=str(directory),
                reinit="finish_previous",
            )
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            raise UserError(f"logger: W&B does not take the run ({str(error).splitlines()[0]}); {OFFLINE}") from None
        if self.run.resumed:  # by the server, which knows what it has
            self._sent = max(self._sent, int(self.run.summary.get("frame", BEGINNING)))
        self.run.config.update({**plain, "run_id": run_id}, allow_val_change=True)
        self.run.define_metric("frame")
        self.run.define_metric("slots", step_metric="frame")
        self.run.define_metric("*", step_metric="frame")
        self._send(rows)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config was logged when the run began."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._waiting.setdefault(int(step or 0), {}).update(metrics)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Send what the checkpoint covers, which is everything so far."""
        self._send(self._waiting)
        self._waiting = {}

    def _send(self, rows: dict[int, Row]) -> None:
        for frame, row in rows.items():
            if frame > self._sent:
                self.run.log({**row, "frame": frame})
                self._sent = frame

    def log_results(self, frame: int, figures: list[Path], checkpoint: Path | None, final: dict[str, float]) -> None:
        """What a finished run leaves: figures, the last checkpoint as an artifact, final means; ends the W&B run."""
        import wandb

        self.run.log({"frame": frame} | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        self.run.summary.update({f"final/{key}": value for key, value in final.items()})
        if checkpoint is not None:
            name = re.sub(r"[^\w.-]+", "-", f"{self.run.name}-checkpoint")  # all that W&B takes
            artifact = wandb.Artifact(name, type="checkpoint", metadata={"frame": frame})
            artifact.add_file(str(checkpoint), policy="immutable")  # not by way of a copy in the home directory
            self.run.log_artifact(artifact)
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """End the session and note that W&B has its rows."""
        self.run.finish(exit_code=exit_code)
        if self._ended is not None:
            self._ended = [*self._ended, Path(self.run.dir).parent.name]
        self._note(self.run.id)

    def _note(self, wandb_id: str) -> None:
        content = {"id": wandb_id, "sent": self._sent, "ended": self._ended}
        write_atomically(self._marker, json.dumps(content) + "\n")

    def finalize(self, status: str) -> None:
        if status != "success":
            self.close(exit_code=1)


def _remove_sessions(place: Path, wandb_id: str, ended: list[str], say: Callable[[str], None]) -> None:
    """Delete the files of offline sessions that were killed: their rows are sent again."""
    for session in place.glob(f"offline-run-*-{wandb_id}"):
        if session.name in ended:
            continue
        if any(session.glob("*.synced")):
            say(f"{session} was uploaded before it ended: W&B may show frames twice")
        shutil.rmtree(session)


class FrameTensorBoardLogger(TensorBoardLogger):
    """TensorBoard's files, written through at every row, so that they reach as far as any checkpoint.

    Args:
        directory: of the run; files go to `tensorboard/` in it.
        frame: where the run goes on; TensorBoard is told to forget later rows.
    """

    def __init__(self, directory: Path, frame: int) -> None:
        purge_step = None if frame == BEGINNING else frame + 1
        super().__init__(str(directory), name="tensorboard", version="", purge_step=purge_step)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.experiment.flush()


def check_wandb_account(config: TrainConfig) -> None:
    """Raise `UserError` where W&B would have to ask who is there: online, not logged in, and no terminal to ask at."""
    if not config.logger.wandb or config.logger.offline or sys.stdin.isatty():
        return
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(f"logger: W&B knows no account here; run `wandb login`, or {OFFLINE}")


def make_loggers(
    config: TrainConfig, plain: dict[str, Any], directory: Path, frame: int, run_id: str, say: Callable[[str], None]
) -> list[Logger]:
    """The CSV logger and those the config asks for, of a run that goes on at `frame` or is at its `BEGINNING`."""
    table = FrameCSVLogger(directory, frame, run_id)
    loggers: list[Logger] = [table]
    if config.logger.tensorboard:
        loggers.append(FrameTensorBoardLogger(directory, frame))
    if config.logger.wandb:
        loggers.append(FrameWandbLogger(config, plain, directory, run_id, table.rows(), say))
    return loggers
