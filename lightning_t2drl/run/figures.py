"""Figures of one run, drawn from the files it wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.envs.picture import paint
from lightning_t2drl.files import temporary_name
from lightning_t2drl.loop.evaluation import on_own_randomness
from lightning_t2drl.loop.metrics import DELAY_PARTS
from lightning_t2drl.loop.slots import frame
from lightning_t2drl.run.labels import PALETTE, QUANTITIES, End, across, label_ends, scheme_name
from lightning_t2drl.run.tables import rows
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario

DELAY_LABELS = {"access_delay": "radio access", "generation_delay": "generation", "backhaul_delay": "backhaul"}


def style() -> None:
    """One look for all figures: readable in a column of a paper."""
    plt.rcParams.update(
        {
            "figure.dpi": 150,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "axes.prop_cycle": cycler(color=PALETTE),
        }
    )


def save(figure: Any, path: Path) -> Path:
    """Write a figure whole or not at all, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(figure)
    return path


def draw_run(output_dir: Path, results: dict[str, Any] | None) -> list[Path]:
    """Learning curve, hit ratio and delay parts of a finished run.

    Args:
        output_dir: holds `metrics.csv` and, if there were evaluations, `evaluations.csv`.
        results: the content of `evaluation.json`, or None without a final evaluation.
    """
    style()
    metrics = pd.read_csv(output_dir / "metrics.csv") if (output_dir / "metrics.csv").exists() else None
    evaluations = output_dir / "evaluations.csv"
    evaluated = pd.read_csv(evaluations) if evaluations.exists() else None
    paths = []
    if metrics is not None and len(metrics):
        for column, file in (("utility", "learning_curve.png"), ("hit_ratio", "hit_ratio.png")):
            figure, axes = plt.subplots(figsize=(5, 3))
            ends = _curve(axes, metrics, evaluated, column) + _references(axes, results, column)
            axes.set_xlabel("frame")
            axes.set_ylabel(QUANTITIES[column])
            label_ends(axes, ends)
            paths.append(save(figure, output_dir / "figures" / file))
    if results is not None:
        paths.append(_delay_parts(results, output_dir / "figures" / "delay_parts.png"))
    return paths


def draw_map(scenario: Scenario, cacher: Cacher, allocator: Allocator, seed: int, path: Path) -> Path:
    """The first held-out slot of a pair of policies: where stations and users are, who serves whom, and with what."""
    style()
    env = EdgeAIGCEnv(scenario, 1, derive_seed(seed, "evaluation"), held_out=True)
    with torch.no_grad(), on_own_randomness(cacher, seed), on_own_randomness(allocator, seed):
        cacher.start_episode(env.observe())
        position = env.get_state()["world"]["position"]
        slot = next(iter(frame(env, cacher, allocator)))
    return save(paint(scenario, 1, position, slot.cells, slot.following["served"]), path)


def _curve(axes: Axes, metrics: pd.DataFrame, evaluated: pd.DataFrame | None, column: str) -> list[End]:
    color, pale = PALETTE[0], "#7fb8d8"
    axes.plot(metrics["frame"], metrics[column], color=pale, lw=1, marker="." if len(metrics) == 1 else None)
    ends = [End(metrics["frame"].iloc[-1], metrics[column].iloc[-1], "training, with exploration", pale)]
    if evaluated is not None:
        mean, error = evaluated[column], evaluated[f"{column}_standard_error"]
        axes.plot(evaluated["frame"], mean, color=color, lw=1.8, marker="o", ms=3)
        axes.fill_between(evaluated["frame"], mean - 2 * error, mean + 2 * error, color=color, alpha=0.2, lw=0)
        ends.append(End(evaluated["frame"].iloc[-1], mean.iloc[-1], f"evaluation {mean.iloc[-1]:.3f}", color))
    return ends


def _references(axes: Axes, results: dict[str, Any] | None, column: str) -> list[End]:
    """RCARS and the oracle as lines across."""
    if results is None:
        return []
    others = [(name, scheme) for name, scheme in rows(results) if name != results["name"]]
    return [across(axes, name, scheme[column]["mean"]) for name, scheme in others]


def _delay_parts(results: dict[str, Any], path: Path) -> Path:
    """Where the time of one request goes: stacked mean delays of every scheme."""
    schemes = dict(rows(results))
    names = [scheme_name(name) for name in schemes]
    figure, axes = plt.subplots(figsize=(5, 0.7 + 0.45 * len(names)))
    left = [0.0] * len(names)
    for part, color in zip(DELAY_PARTS, PALETTE, strict=False):
        seconds = [scheme[part]["mean"] for scheme in schemes.values()]
        axes.barh(names, seconds, left=left, color=color, label=DELAY_LABELS[part], height=0.6)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    if results["deadline"] is not None:  # services may have deadlines of their own
        axes.axvline(results["deadline"], color="#333333", ls=":", lw=1, label="deadline")
    axes.invert_yaxis()
    axes.set_xlabel("mean delay of a request, s")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.35), ncols=4, fontsize=8, columnspacing=1.0)
    return save(figure, path)
