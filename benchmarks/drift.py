"""(g) Whether updates slow down over a run, as they do where denormals are not flushed to zero."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, Spread
from benchmarks.report import Section
from benchmarks.subjects import SHAPES, filled_replay, mlp_allocator, same_shapes, transitions, update_job

BATCH_SIZE, ROWS = 64, 6400
RENEWED_EVERY = 50  # updates
FRESH, FLUSHED, KEPT = "always fresh", "denormals flushed, as in training", "denormals kept"


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    batches = transitions(mlp_allocator("d3pg", scenario, "relu"), scenario, ROWS)

    def job() -> Job:
        return update_job(mlp_allocator("d3pg", scenario, "relu"), filled_replay(batches), BATCH_SIZE)

    jobs = {name: job() for name in (FRESH, FLUSHED, KEPT)}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    try:
        for done in range(budget.updates):
            if done % RENEWED_EVERY == 0:
                jobs[FRESH] = job()
                jobs[FRESH]()  # Adam makes its moments
            for name, update in jobs.items():
                torch.set_flush_denormal(name != KEPT)
                start = time.perf_counter()
                update()
                seconds[name].append(time.perf_counter() - start)
            advance((done + 1) / budget.updates)
    finally:
        torch.set_flush_denormal(True)
    return Section(
        "Drift",
        f"{budget.updates} updates of each, in turn, B = {BATCH_SIZE}. {SHAPES}; ReLU, whose dead units let Adam's "
        "moments decay into denormals.",
        drift_rows({name: np.array(values) for name, values in seconds.items()}, budget.updates // 10),
        [
            f"'{FRESH}' starts anew every {RENEWED_EVERY} updates: whatever it gains or loses is the machine's doing. "
            "'Over fresh' compares with it update by update."
        ],
    )


def drift_rows(seconds: dict[str, np.ndarray], window: int) -> list[dict[str, Any]]:
    """Time per update in the first and the last `window` updates, and over that of fresh networks beside."""
    ends = {f"first {window}": slice(None, window), f"last {window}": slice(-window, None)}
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"D3PG update": name}
        row |= {f"ms, {end}": Spread.of(1e3 * values[part]) for end, part in ends.items()}
        row |= {f"over fresh, {end}": Spread.of(values[part] / seconds[FRESH][part]) for end, part in ends.items()}
        rows.append(row)
    return rows
