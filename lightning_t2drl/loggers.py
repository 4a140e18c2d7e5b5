"""Trackers: CSV files that survive interruptions without gap or duplicate, W&B and TensorBoard by Lightning."""

from __future__ import annotations

import csv
import json
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_t2drl.config import TrainConfig
from lightning_t2drl.distributed import is_rank_zero

EVALUATION = "evaluation/"


class FrameCSVLogger(Logger):
    """One row per logged frame in `metrics.csv`, one per evaluation in `evaluations.csv`.

    Rows are on disk as soon as they are logged. A new column rewrites the file (a run meets its losses only after
    warming up); `truncate` drops what a resumed run will log again.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self._columns: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config is saved in the output directory."""

    @rank_zero_only
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

    @rank_zero_only
    def truncate(self, frame: int) -> None:
        """Drop rows after `frame`, and a row that was torn by a kill."""
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


def make_loggers(config: TrainConfig, output_dir: Path) -> list[Logger]:
    """The CSV logger and those the config asks for; a resumed run goes on in the same W&B run."""
    loggers: list[Logger] = [FrameCSVLogger(output_dir)]
    if config.logger.tensorboard:
        loggers.append(TensorBoardLogger(str(output_dir), name="tensorboard", version=""))
    if config.logger.wandb:
        loggers.append(_wandb_logger(config, output_dir))
    return loggers


def _wandb_logger(config: TrainConfig, output_dir: Path) -> WandbLogger:
    marker = output_dir / "wandb.json"
    run_id = json.loads(marker.read_text())["id"] if marker.exists() else secrets.token_hex(4)
    marker.write_text(json.dumps({"id": run_id}))
    logger = WandbLogger(
        project=config.logger.project,
        entity=config.logger.entity,
        name=f"{config.name}-seed{config.seed}",
        group=config.logger.group or config.name,
        job_type=config.logger.job_type,
        tags=config.logger.tags,
        id=run_id,
        resume="allow",
        offline=config.logger.offline,
        save_dir=str(output_dir),
        log_model=False,
    )
    if is_rank_zero():
        run = logger.experiment
        run.define_metric("frame")
        run.define_metric("slots")
        run.define_metric("*", step_metric="frame")
    return logger
