"""How long until a policy is good: `python -m benchmarks.time_to_quality --base COMMIT`.

Trains this checkout's experiments, the same ones of another commit, variants (`--vary "KEY=VALUE ..."`) and agents of
Stable-Baselines3 (`--agent "SAC gamma=0"`), one thread each: agents one after the other, then the rest run by run in
turn. Evaluates along the way on held-out worlds, and notes when the policy first brings 95, 98 and 99 % of what the
oracle brings on the same worlds. CPU seconds are those of training alone: imports, evaluations and checkpoints are not
counted, for any side. Writes a page, a figure of the curves, and `points.csv` with every evaluation, after each run.
Runs that are there already, of the same code, are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from benchmarks.measure import Spread
from benchmarks.report import cell, origin_lines, provenance
from benchmarks.whole_run import BASE, HERE, ROOT, name_in, run_in, worktree
from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.api import evaluate
from lightning_t2drl.run.compose import compose
from lightning_t2drl.suite.comparison import interval

SHARES = (0.95, 0.98, 0.99)
SEED = 1_000_003  # of the held-out worlds
BANDS = 4  # sides, up to which bands of quartiles can be told apart
PAGE, FIGURE, POINTS = "README.md", "time_to_quality.png", "points.csv"


class Point(NamedTuple):
    """An evaluation along a run."""

    frame: int
    slots: int
    gradient_steps: int
    cpu_seconds: float
    wall_seconds: float
    utility: float


class Run(NamedTuple):
    """Which run: the commit whose code it ran, who, and with what words."""

    commit: str
    experiment: str
    side: str
    words: str


Training = Callable[[str, list[str], Path], list[Point]]  # from the experiment, overrides and a directory
Curves = Mapping[str, Mapping[str, list[list[Point]]]]  # a run's evaluations by experiment, side and seed
References = Mapping[str, Mapping[str, float]]  # mean utilities by experiment and scheme
AXES = {"cpu_seconds": "CPU seconds of training", "slots": "slots played", "gradient_steps": "gradient steps"}


def train(tree: Path, experiment: str, overrides: list[str], work: Path) -> list[Point]:
    """One run in a process of its own, evaluated along the way; raises as `run_in`."""
    words = [f"experiment={name_in(tree, experiment)}", f"output_dir={work / 'run'}", *overrides]
    words += [f"evaluation.seed={SEED}", "progress_bar=false", "figures=false", "evaluation.final_episodes=0"]
    # -P: modules of this folder must not stand in for others of their names
    clocked = [sys.executable, "-P", str(ROOT / "benchmarks/clocked.py")]
    run_in(tree, [*clocked, str(tree), str(work / "clock.csv"), *words])
    clock = {int(row[0]): [float(value) for value in row[1:]] for row in csv.reader((work / "clock.csv").open())}
    points = []
    for row in csv.DictReader((work / "run/evaluations.csv").open()):
        frame = int(row["frame"])
        _, cpu, wall = clock.get(frame, [0.0, 0.0, 0.0])
        points.append(Point(frame, int(row["slots"]), int(row["gradient_steps"]), cpu, wall, float(row["utility"])))
    return points


def train_agent(agent: str, experiment: str, overrides: list[str], work: Path) -> list[Point]:
    """One run of an agent of Stable-Baselines3 in the experiment's worlds, see `benchmarks.agents`."""
    words = [agent, str(work / "points.csv"), f"experiment={experiment}", *overrides, f"evaluation.seed={SEED}"]
    run_in(ROOT, [sys.executable, "-m", "benchmarks.agents", *words])
    return [_point(row) for row in csv.reader((work / "points.csv").open())]


def _point(row: list[str]) -> Point:
    return Point(*(int(value) for value in row[:3]), *(float(value) for value in row[3:]))


def finished(path: Path) -> dict[Run, list[Point]]:
    """The runs in `points.csv`."""
    runs: dict[Run, list[Point]] = {}
    if path.exists():
        for row in list(csv.reader(path.open()))[1:]:
            runs.setdefault(Run(*row[:4]), []).append(_point(row[4:]))
    return runs


def keep(runs: Mapping[Run, list[Point]], path: Path) -> None:
    """Write `points.csv`, whole or not at all."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*Run._fields, *Point._fields])
    table.writerows([*run, *point] for run, points in runs.items() for point in points)
    write_atomically(path, text.getvalue())


def reached(points: list[Point], utility: float) -> Point | None:
    """The first evaluation that reaches a utility; None where none does."""
    return next((point for point in points if point.utility >= utility), None)


def page(
    origin: dict[str, Any], base: str | None, episodes: int, best: References, curves: Curves, agents: bool
) -> list[str]:
    """The runs as lines of a Markdown page."""
    other = f" Base is {base}." if base else ""
    lines = ["# Time to a good policy", "", *origin_lines(origin), ""]
    lines += [
        f"Cells are medians [quartiles] over seeds.{other} Quality is the share of the oracle's "
        f"utility on the same {episodes} held-out episodes. Gradient steps are those of all "
        "optimizers, CPU seconds those of training alone; the last column divides them seed by seed.",
    ]
    if agents:
        lines += [
            "",
            "Agents of Stable-Baselines3 have its default hyperparameters but for those in their names. They play the "
            "experiment's worlds as one batch and as many slots as it, and learn the allocation alone, from flat "
            "observations. Popular models are cached for them.",
        ]
    for experiment, sides in curves.items():
        there = best[experiment]
        oracle = there["oracle"]
        lines += ["", f"## {experiment}", "", f"The oracle's utility is {oracle:.4f} per slot."]
        if agents:
            lines += [
                f"With popular caches the exact allocation reaches {there['popular'] / oracle:.2%} of it, "
                f"and an equal split {there['equal'] / oracle:.2%}."
            ]
        lines += [
            "",
            "| quality | side | seeds that reach it | frames | slots | gradient steps | CPU s | wall s "
            f"| CPU s by {HERE}'s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for share in SHARES:
            found = {side: [reached(run, share * oracle) for run in of_side] for side, of_side in sides.items()}
            for side, points in found.items():
                arrived = [point for point in points if point is not None]
                numbers = _cells(arrived) if arrived else "never | – | – | – | –"
                ratios = _ratios(points, found.get(HERE, [])) if side != HERE else []
                against = cell(Spread.of(ratios)) if ratios else "–"
                lines.append(f"| {share:.0%} | {side} | {len(arrived)} of {len(points)} | {numbers} | {against} |")
        lines += [
            "",
            "At the end; the share of the oracle is the interquartile mean over seeds with its 95 % interval:",
            "",
            "| side | seeds | share of the oracle | frames | slots | gradient steps | CPU s | wall s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for side, of_side in sides.items():
            mean, low, high = interval(np.array([run[-1].utility / oracle for run in of_side]))
            between = f" [{low:.2%}, {high:.2%}]" if len(of_side) > 1 else ""
            lines.append(f"| {side} | {len(of_side)} | {mean:.2%}{between} | {_cells([run[-1] for run in of_side])} |")
    return lines


def _ratios(theirs: list[Point | None], ours: list[Point | None]) -> list[float]:
    """CPU seconds by ours, seed by seed, where both got there."""
    pairs = zip(theirs, ours, strict=True) if len(theirs) == len(ours) else ()
    return [a.cpu_seconds / b.cpu_seconds for a, b in pairs if a is not None and b is not None]


def _cells(points: list[Point]) -> str:
    names = ("frame", "slots", "gradient_steps", "cpu_seconds", "wall_seconds")
    return " | ".join(cell(Spread.of([getattr(point, name) for point in points])) for name in names)


def draw(best: References, curves: Curves, agents: bool, path: Path) -> None:
    """Quality over what it costs, medians and quartiles over seeds, a row of panels per experiment."""
    figure = Figure(figsize=(12, 3.6 * len(curves)), layout="constrained")
    rows = figure.subplots(len(curves), len(AXES), squeeze=False, sharey="row")
    for panels, (experiment, sides) in zip(rows, curves.items(), strict=True):
        there = best[experiment]
        ends = [100 * run[-1].utility / there["oracle"] for of_side in sides.values() for run in of_side]
        lowest = np.floor(min(ends) - min(max(4 * (100 - min(ends)), 2), 10))  # what is good at the end is told apart
        for axes, (name, label) in zip(panels, AXES.items(), strict=True):
            for place, (side, of_side) in enumerate(sides.items()):
                along, quality = (
                    np.array([[getattr(point, key) for point in run] for run in of_side]) for key in (name, "utility")
                )
                low, middle, high = np.quantile(100 * quality / there["oracle"], (0.25, 0.5, 0.75), axis=0)
                cost = np.median(along, axis=0)
                look = {"color": f"C{place % 10}", "ls": "-" if place < 10 else "--"}  # there are ten colours
                axes.plot(cost, middle, **look, marker="o", ms=4, markevery=[-1], lw=1.2, label=side)
                if len(sides) <= BANDS:
                    axes.fill_between(cost, low, high, color=look["color"], alpha=0.2, linewidth=0)
            for share in SHARES:
                axes.axhline(100 * share, color="black", linewidth=0.5, linestyle=":")
            if agents:
                axes.axhline(100 * there["popular"] / there["oracle"], color="grey", linewidth=1, linestyle="--",
                             label="popular caches, exact allocation")  # fmt: skip
            axes.set(xlabel=label, ylim=(lowest, 100.5), xlim=(0, None))
        panels[0].set(title=experiment, ylabel="utility, % of the oracle")
    named = {label: line for axes in rows[:, 0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def references(experiment: str, overrides: list[str], agents: bool, episodes: int, work: Path) -> dict[str, float]:
    """In an experiment's world, mean utility of the oracle, and with popular caches of exact and equal allocation."""
    pairs = {"oracle": ("oracle", "exact")}
    if agents:
        pairs |= {"popular": ("popular", "exact"), "equal": ("popular", "equal")}
    world = work / f"{experiment}.yaml"
    world.write_text(OmegaConf.to_yaml(compose("train", [f"experiment={experiment}", *overrides]).config.env))
    found = {}
    for name, (cacher, allocator) in pairs.items():
        words = {"episodes": episodes, "seed": SEED, "references": [], "output_dir": str(work / experiment / name)}
        played = evaluate(f"env={world}", cacher=cacher, allocator=allocator, **words)
        rows = played.schemes.set_index(["scheme", "metric"])["mean"]
        found[name] = float(rows[played.name, "utility"])
    return found


def main(arguments: list[str]) -> str:
    """Run, write and return the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="COMMIT", help="what to compare with; left out: this checkout alone")
    parser.add_argument("--vary", action="append", default=[], metavar="WORDS", help="also this checkout with these")
    parser.add_argument("--agent", action="append", default=[], metavar="WORDS",
                        help="also an agent of Stable-Baselines3 and its arguments, such as 'SAC gamma=0'")  # fmt: skip
    parser.add_argument("--experiment", default="quickstart,t2drl", metavar="A,B", help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--episodes", type=int, default=100, help="of every evaluation; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/time_to_quality"), help="default %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all sides, such as frames=120")
    parsed = parser.parse_args(arguments)
    said = [word for word, before in zip(arguments, ["", *arguments], strict=False) if "--output" not in (word, before)]
    origin = provenance(shlex.join(["python", "-m", "benchmarks.time_to_quality", *said])) | {"threads": 1}
    parsed.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, which removes the worktree
    along = [] if any(w.startswith("evaluation.every") for w in parsed.overrides) else ["evaluation.every_n_frames=5"]
    along.append(f"evaluation.episodes={parsed.episodes}")
    runs, agents = finished(parsed.output / POINTS), bool(parsed.agent)
    with tempfile.TemporaryDirectory() as work, worktree(parsed.base) if parsed.base else nullcontext(ROOT) as base:
        best = {
            experiment: references(experiment, parsed.overrides, agents, parsed.episodes, Path(work))
            for experiment in parsed.experiment.split(",")
        }
        here = origin["commit"]
        # whose code, the words of its own, and what trains it
        own: dict[str, tuple[str, list[str], Training]] = {HERE: (here, [], partial(train, ROOT))}
        if parsed.base:
            own[BASE] = parsed.base, [], partial(train, base)
        own |= {words: (here, words.split(), partial(train, ROOT)) for words in parsed.vary}
        others = {agent: (here, [], partial(train_agent, agent)) for agent in parsed.agent}
        contenders = own | others
        turns = [(agent, seed) for agent in others for seed in range(parsed.seeds)]
        turns += [(side, seed) for seed in range(parsed.seeds) for side in list(own)[:: 1 if seed % 2 else -1]]
        plan: dict[Run, tuple[list[str], Training]] = {}
        for experiment in best:
            for side, seed in turns:
                code, more, training = contenders[side]
                words = [f"seed={seed}", *along, *more, *parsed.overrides]
                plan[Run(code, experiment, side, shlex.join(words))] = words, training
        missing = [run for run in plan if run not in runs]
        for run in missing or list(plan)[-1:]:
            words, training = plan[run]
            if run not in runs:
                with tempfile.TemporaryDirectory(dir=work) as place:
                    runs[run] = training(run.experiment, words, Path(place))
                keep(runs, parsed.output / POINTS)
            last, most = runs[run][-1], best[run.experiment]["oracle"]
            print(f"{run.experiment}, {words[0]}, {run.side}: {last.utility / most:.2%} of the oracle after "
                  f"{last.cpu_seconds:.0f} CPU s", flush=True)  # fmt: skip
            curves: dict[str, dict[str, list[list[Point]]]] = {}
            for other in (one for side in contenders for one in plan if one.side == side and one in runs):
                curves.setdefault(other.experiment, {}).setdefault(other.side, []).append(runs[other])
            draw(best, curves, agents, parsed.output / FIGURE)
            lines = page(origin, parsed.base, parsed.episodes, best, curves, agents)
            text = "\n".join([*lines, "", f"![Quality over what it costs]({FIGURE})"]) + "\n"
            (parsed.output / PAGE).write_text(text)
    return text


if __name__ == "__main__":
    print(main(sys.argv[1:]))
