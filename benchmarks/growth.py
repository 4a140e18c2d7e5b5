"""(f) How time and memory of a slot and of a decision grow with the scenario and the networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, Spread, exponent, interleave, peak_bytes, share_of
from benchmarks.report import Section
from benchmarks.subjects import HIDDEN, Play, allocator, cacher, mlp_allocator, with_models
from lightning_t2drl.policy import Policy
from lightning_t2drl.run.figures import save, style
from lightning_t2drl.run.labels import PALETTE
from lightning_t2drl.system import Scenario, load_scenario

WORLDS = 64
SLOT, FLAT, SETS, CACHE = "slot (env.play)", "decision, MLPs", "decision, set networks", "decision, knapsack cacher"


@dataclass(frozen=True)
class Axis:
    """One quantity that grows, and what is measured at each of its values."""

    symbol: str
    label: str
    values: tuple[int, ...]
    jobs: Callable[[int], dict[str, Job]]


def slot(scenario: Scenario, worlds: int = WORLDS) -> Job:
    return Play(scenario, worlds).step


def decision(policy: Policy, scenario: Scenario, worlds: int = WORLDS) -> Job:
    """A decision from the observation on, state included."""
    cells = Play(scenario, worlds).step()
    return lambda: policy.decide(cells)  # type: ignore[operator]


def _flat(scenario: Scenario, *overrides: str) -> Policy:
    return mlp_allocator("d3pg", scenario, "relu", *overrides)


def _users(users: int) -> dict[str, Job]:
    s = load_scenario("paper", users=users)
    return {SLOT: slot(s), FLAT: decision(_flat(s), s), SETS: decision(allocator("d3pg", s), s)}


def _models(models: int) -> dict[str, Job]:
    s = with_models(models)
    return {SLOT: slot(s), FLAT: decision(_flat(s), s), CACHE: decision(cacher("knapsack", s), s)}


def _worlds(worlds: int) -> dict[str, Job]:
    s = load_scenario("paper")
    sets = allocator("d3pg", s)
    return {SLOT: slot(s, worlds), FLAT: decision(_flat(s), s, worlds), SETS: decision(sets, s, worlds)}


def _cells(cells: int) -> dict[str, Job]:
    """As many users per cell."""
    s = load_scenario("cells3", cells=cells, users=10 * cells, active_users=[5 * cells, 10 * cells])
    return {SLOT: slot(s, 16), SETS: decision(allocator("d3pg", s), s, 16)}


def _steps(steps: int) -> dict[str, Job]:
    s, key = load_scenario("paper"), f"diffusion.steps={steps}"
    return {FLAT: decision(_flat(s, key), s), SETS: decision(allocator("d3pg", s, key), s)}


def _width(width: int) -> dict[str, Job]:
    s = load_scenario("paper")
    sets = allocator("d3pg", s, f"actor.hidden={width}")
    return {FLAT: decision(_flat(s, f"actor.hidden={width}"), s), SETS: decision(sets, s)}


AXES = (
    Axis("U", "users U", (10, 20, 50, 100, 200), _users),
    Axis("M", "models M", (10, 20, 30, 40, 50), _models),
    Axis("N", "worlds N", (1, 8, 64, 512, 8192), _worlds),
    Axis("B", "cells B, 10 users each", (1, 3, 7, 19), _cells),
    Axis("I", "diffusion steps I", (1, 2, 5, 10, 20), _steps),
    Axis("width", "actor width", (64, 128, 256, 512, 1024), _width),
)


def run(budget: Budget, advance: Advance) -> Section:
    points: list[dict[str, Any]] = []
    for part, axis in enumerate(AXES):
        values = axis.values[: budget.growth_points]
        jobs = {(value, what): job for value in values for what, job in axis.jobs(value).items()}
        timings = interleave(jobs, budget.seconds, budget.rounds, share_of(advance, part, len(AXES)))
        for (value, what), seconds in timings.items():
            memory = peak_bytes(jobs[value, what]) / 1e6
            points.append(
                {"axis": axis.symbol, "value": value, "what": what, "ms": Spread.of(seconds * 1e3), "MB": memory}
            )
    rows = [
        growth_row(axis, what, [p for p in points if (p["axis"], p["what"]) == (axis.symbol, what)])
        for axis in AXES
        for what in dict.fromkeys(p["what"] for p in points if p["axis"] == axis.symbol)
    ]
    return Section(
        "Growth",
        f"env=paper but for one quantity at a time; {WORLDS} worlds where N is not it, 16 of env=cells3 where B is; "
        f"MLPs {HIDDEN} x 2, set networks of allocator=d3pg. A decision includes the features. Time of one call for "
        "all worlds, and most bytes of tensors that it holds at once by PyTorch's allocation count.",
        rows,
        [
            "'exponent' is the least-squares k of y ~ x^k over all values, 'at the end' between the two largest; 1 is "
            "linear growth, less means that fixed cost still counts."
        ],
        details=points,
    )


def growth_row(axis: Axis, what: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """First and last value of one curve, and how it grows in between."""
    x = [point["value"] for point in points]
    ms = [point["ms"].median for point in points]
    memory = [point["MB"] for point in points]
    return {
        "axis": f"{axis.symbol} = {x[0]}..{x[-1]}",
        "what": what,
        "ms, first": ms[0],
        "ms, last": ms[-1],
        "exponent": exponent(x, ms),
        "at the end": exponent(x[-2:], ms[-2:]),
        "MB, first": memory[0],
        "MB, last": memory[-1],
        "memory exponent": exponent(x, memory),
        "memory at the end": exponent(x[-2:], memory[-2:]),
    }


def draw(section: Section, directory: Path) -> None:
    """Time and memory over each axis, log-log, with a line of slope 1 for the eye."""
    style()
    figure, panels = plt.subplots(2, len(AXES), figsize=(2.6 * len(AXES), 4.6), squeeze=False, layout="constrained")
    colors = dict(zip((SLOT, FLAT, SETS, CACHE), PALETTE, strict=False))
    for column, axis in enumerate(AXES):
        points = [p for p in section.details if p["axis"] == axis.symbol]
        for row, (key, label) in enumerate((("ms", "ms per call"), ("MB", "MB per call"))):
            panel = panels[row][column]
            for what in dict.fromkeys(p["what"] for p in points):
                curve = [p for p in points if p["what"] == what]
                x = [p["value"] for p in curve]
                y = [p[key].median if key == "ms" else p[key] for p in curve]
                panel.plot(x, y, marker="o", ms=3, color=colors[what], label=what)
                panel.plot(x, [y[-1] * value / x[-1] for value in x], color=colors[what], lw=0.6, ls=":")
            panel.set(xscale="log", yscale="log", xlabel=axis.label if row else None)
            panel.set_xticks(axis.values, [str(value) for value in axis.values], fontsize=7)
            panel.set_xticks([], minor=True)
            panel.yaxis.set_minor_formatter(NullFormatter())
            if column == 0:
                panel.set_ylabel(label)
    handles = {
        text: line for panel in panels.flat for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, title="dotted: linear growth")
    save(figure, directory / "growth.png")
    section.figures.append("growth.png")
