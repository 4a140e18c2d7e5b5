"""What a training run leaves, as Python values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import RESULT, tidy
from lightning_t2drl.run.train import train


@dataclass(frozen=True)
class Training:
    """A finished run.

    Args:
        name: of the scheme.
        summary: what `summary.json` holds.
        output_dir: where everything is.
    """

    name: str
    summary: dict[str, Any]
    output_dir: Path

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per logged frame."""
        return self._table("metrics.csv")

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row per evaluation during training."""
        return self._table("evaluations.csv")

    @cached_property
    def schemes(self) -> pd.DataFrame:
        """The final evaluation: one row per scheme and metric, with mean and standard error; empty without one."""
        path = self.output_dir / RESULT
        return tidy(json.loads(path.read_text()) if path.exists() else {"schemes": {}})

    def _table(self, name: str) -> pd.DataFrame:
        path = self.output_dir / name
        return pd.read_csv(path) if path.exists() else pd.DataFrame()


def run_training(composed: Composed) -> Training:
    """Train as composed: what `t2drl train` does.

    Raises:
        UserError: before anything is written, if the config cannot be run.
    """
    summary = train(composed.config, OmegaConf.create(composed.plain), list(composed.arguments))
    directory = Path(summary.pop("output_dir"))
    return Training(str(composed.config.name), summary, directory)
