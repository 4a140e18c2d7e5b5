"""Seconds of a generation by its steps: base and per step, by non-negative least squares."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from lightning_t2drl.errors import UserError

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
REPEATS = 3
LEAST_R2 = 0.9


class Seconds(NamedTuple):
    """Of a whole batch."""

    base: float
    per_step: float
    r2: float


def measure_seconds(
    generate: Callable[[int, int, int], Any], steps: Sequence[int], batches: Sequence[int], clock: str
) -> pd.DataFrame:
    """One row per generation: `batch`, `steps`, `repeat`, `seconds`; the first of each batch is not counted."""
    now, rows = CLOCKS[clock], []
    for batch in batches:
        generate(min(steps), batch, 0)
        for repeat in range(REPEATS):
            for count in steps:
                start = now()
                generate(count, batch, repeat)
                rows.append({"batch": batch, "steps": count, "repeat": repeat, "seconds": now() - start})
    return pd.DataFrame(rows)


def fit_seconds(rows: pd.DataFrame) -> dict[int, Seconds]:
    """By batch, base and per-step seconds through the medians of the repeats.

    Raises:
        UserError: seconds are not a straight line in the steps.
    """
    found = {}
    for batch, some in rows.groupby("batch"):
        median = some.groupby("steps")["seconds"].median()
        steps, seconds = median.index.to_numpy(float), median.to_numpy(float)
        (base, per_step), residual = nnls(np.stack([np.ones_like(steps), steps], 1), seconds)
        r2 = 1 - residual**2 / max(np.square(seconds - seconds.mean()).sum(), 1e-300)
        if not (r2 >= LEAST_R2 and per_step > 0):
            raise UserError(f"seconds do not grow evenly with steps (batch {batch}, R2 {r2:.3f})")
        found[int(batch)] = Seconds(float(base), float(per_step), float(r2))
    return found
