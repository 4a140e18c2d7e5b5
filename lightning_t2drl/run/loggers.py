"""Trackers: CSV files that survive interruptions without gap or duplicate, W&B, and TensorBoard by Lightning."""

from __future__ import annotations

import csv
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.schemas import TrainConfig

EVALUATION = "evaluation/"
BEGINNING = -1  # the frame at which a run begins that is not resumed: before the evaluation at frame 0
OFFLINE = "logger.offline=true needs neither account nor network"


class FrameCSVLogger(Logger):
    """One row per logged frame in `metrics.csv`, one per evaluation in `evaluations.csv`.

    Rows are on disk as soon as they are logged. A new column rewrites the file (a run meets its losses only after
    warming up).

    Args:
        directory: where the files are.
        frame: where the run goes on; rows after it, and a row that a kill has torn, are dropped.
    """

    def __init__(self, directory: Path, frame: int) -> None:
        super().__init__()
        self.directory = directory
        self._columns: dict[str, list[str]] = {}
        self._truncate(frame)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config is saved in the output directory."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        evaluation = any(key.startswith(EVALUATION) for key in metrics)
        row: dict[str, Any] = {"frame": step}
        row |= {key.removeprefix(EVALUATION): value for key, value in metrics.items()}
        file = "evaluations.csv" if evaluation else "metrics.csv"
        path = self.directory / file
        columns = self._columns.setdefault(file, self._header(path))
        missing = [key for key in row if key not in columns]
        if missing:
            columns += missing
            self._rewrite(path, columns, self._rows(path))
        with open(path, "a", newline="") as target:
            csv.DictWriter(target, columns, restval="").writerow(row)
            target.flush()
            os.fsync(target.fileno())

    def _truncate(self, frame: int) -> None:
        for file in ("metrics.csv", "evaluations.csv"):
            path = self.directory / file
            if path.exists():
                columns = self._header(path)
                rows = self._rows(path)
                kept = [row for row in rows if (row["frame"] or "").isdigit() and None not in row.values()]
                self._rewrite(path, columns, [row for row in kept if int(row["frame"]) <= frame])

    @staticmethod
    def _header(path: Path) -> list[str]:
        if not path.exists():
            return []
        with open(path, newline="") as source:
            return next(csv.reader(source), [])

    @staticmethod
    def _rows(path: Path) -> list[dict[str, str]]:
        if not path.exists():
            return []
        with open(path, newline="") as source:
            return list(csv.DictReader(source))

    @staticmethod
    def _rewrite(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as target:
            writer = csv.DictWriter(target, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)


class FrameWandbLogger(Logger):
    """One W&B run per output directory, however often it is interrupted; metrics are plotted against `frame`.

    The run's id is kept in `wandb.json`, unless a sweep's agent dictates it. The API key stays where W&B looks for it.

    Args:
        config: whose `logger` section says where to and under which labels.
        plain: the composed config, logged with the run.
        directory: of the run; W&B's own files go to `wandb/` in it.

    Raises:
        UserError: W&B does not take the run: no network, no such entity, not logged in.
    """

    def __init__(self, config: TrainConfig, plain: dict[str, Any], directory: Path) -> None:
        super().__init__()
        import wandb

        c = config.logger
        marker = directory / "wandb.json"
        known = json.loads(marker.read_text())["id"] if marker.exists() else secrets.token_hex(4)
        run_id = os.environ.get("WANDB_RUN_ID") or known
        write_atomically(marker, json.dumps({"id": run_id}))
        try:
            self.run = wandb.init(
                project=c.project,
                entity=c.entity,
                name=f"{config.name}-seed{config.seed}",
                group=c.group or config.name,
                job_type=c.job_type,
                tags=c.tags,
                id=run_id,
                resume="allow",
                mode="offline" if c.offline else None,
                dir=str(directory),
                reinit="finish_previous",
            )
        except wandb.errors.Error as error:
            raise UserError(f"logger: W&B does not take the run ({str(error).splitlines()[0]}); {OFFLINE}") from None
        self.run.config.update(plain, allow_val_change=True)
        self.run.define_metric("frame")
        self.run.define_metric("slots", step_metric="frame")
        self.run.define_metric("*", step_metric="frame")

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config was logged when the run began."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log({"frame": step, **metrics})

    def log_results(self, frame: int, figures: list[Path], checkpoint: Path | None, final: dict[str, float]) -> None:
        """What a finished run leaves: figures, the last checkpoint as an artifact, final means; ends the W&B run."""
        import wandb

        self.run.log({"frame": frame} | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        self.run.summary.update({f"final/{key}": value for key, value in final.items()})
        if checkpoint is not None:
            artifact = wandb.Artifact(f"{self.run.name}-checkpoint", type="checkpoint", metadata={"frame": frame})
            artifact.add_file(str(checkpoint), policy="immutable")  # uploaded from here, not from a copy at home
            self.run.log_artifact(artifact)
        self.run.finish()

    def finalize(self, status: str) -> None:
        if status != "success":
            self.run.finish(exit_code=1)


def check_wandb_account(config: TrainConfig) -> None:
    """Raise `UserError` where W&B would have to ask who is there: online, not logged in, and no terminal to ask at."""
    if not config.logger.wandb or config.logger.offline or sys.stdin.isatty():
        return
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(f"logger: W&B knows no account here; run `wandb login`, or {OFFLINE}")


def make_loggers(config: TrainConfig, plain: dict[str, Any], directory: Path, frame: int) -> list[Logger]:
    """The CSV logger and those the config asks for, of a run that goes on at `frame` or is at its `BEGINNING`."""
    loggers: list[Logger] = [FrameCSVLogger(directory, frame)]
    if config.logger.tensorboard:
        loggers.append(TensorBoardLogger(str(directory), name="tensorboard", version=""))
    if config.logger.wandb:
        loggers.append(FrameWandbLogger(config, plain, directory))
    return loggers
