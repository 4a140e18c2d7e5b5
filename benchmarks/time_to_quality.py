"""How long until a policy is good: `python -m benchmarks.time_to_quality --base COMMIT`.

Trains this checkout's experiments, the same ones of another commit, and variants (`--vary "KEY=VALUE ..."`), run by
run in turn, one thread each, evaluates along the way on held-out worlds, and notes when the policy first brings 95, 98
and 99 % of what the oracle brings on the same worlds. CPU seconds are those of training alone: imports, evaluations and
checkpoints are not counted, for either side. Writes `time_to_quality.json`, a page and a figure of the curves.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measure import Spread
from benchmarks.report import cell, origin_lines, provenance
from benchmarks.whole_run import BASE, HERE, ROOT, name_in, run_in, worktree
from lightning_t2drl.run.api import evaluate
from lightning_t2drl.suite.comparison import interval

SHARES = (0.95, 0.98, 0.99)
EPISODES, SEED = 100, 1_000_003


class Point(NamedTuple):
    """An evaluation along a run."""

    frame: int
    slots: int
    gradient_steps: int
    cpu_seconds: float
    wall_seconds: float
    utility: float


def train(tree: Path, experiment: str, overrides: list[str], work: Path) -> list[Point]:
    """One run in a process of its own, evaluated along the way; raises as `run_in`."""
    words = [f"experiment={name_in(tree, experiment)}", f"output_dir={work / 'run'}", *overrides]
    words += ["progress_bar=false", "figures=false", "evaluation.final_episodes=0"]
    words += [f"evaluation.episodes={EPISODES}", f"evaluation.seed={SEED}"]
    # -P: this folder has a module http, which must not stand in for the library's
    clocked = [sys.executable, "-P", str(ROOT / "benchmarks/clocked.py")]
    run_in(tree, [*clocked, str(tree), str(work / "clock.csv"), *words])
    clock = {int(row[0]): [float(value) for value in row[1:]] for row in csv.reader((work / "clock.csv").open())}
    points = []
    for row in csv.DictReader((work / "run/evaluations.csv").open()):
        frame = int(row["frame"])
        _, cpu, wall = clock.get(frame, [0.0, 0.0, 0.0])
        points.append(Point(frame, int(row["slots"]), int(row["gradient_steps"]), cpu, wall, float(row["utility"])))
    return points


def reached(points: list[Point], utility: float) -> Point | None:
    """The first evaluation that reaches a utility; None where none does."""
    return next((point for point in points if point.utility >= utility), None)


def page(
    origin: dict[str, Any], base: str, oracle: float, runs: Mapping[str, Mapping[str, list[list[Point]]]]
) -> list[str]:
    """The runs as lines of a Markdown page."""
    lines = ["# Time to a good policy", "", *origin_lines(origin), ""]
    lines += [
        f"Runs of this checkout and of {base} (base) take turns; cells are medians [quartiles] over seeds. Quality is "
        f"the share of the oracle's utility, {oracle:.4f} per slot, on the same {EPISODES} held-out episodes.",
    ]
    for experiment, sides in runs.items():
        lines += ["", f"## {experiment}", ""]
        lines += [
            "| quality | side | seeds that reach it | frames | slots | gradient steps | CPU s | wall s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for share in SHARES:
            found = {side: [reached(run, share * oracle) for run in of_side] for side, of_side in sides.items()}
            for side, points in found.items():
                there = [point for point in points if point is not None]
                cells = [
                    cell(Spread.of([getattr(point, name) for point in there])) if there else "never"
                    for name in ("frame", "slots", "gradient_steps", "cpu_seconds", "wall_seconds")
                ]
                lines.append(f"| {share:.0%} | {side} | {len(there)} of {len(points)} | {' | '.join(cells)} |")
            for side in list(found)[1:]:
                pairs = zip(found[side], found[HERE], strict=True)
                ratios = [a.cpu_seconds / b.cpu_seconds for a, b in pairs if a is not None and b is not None]
                if ratios:
                    lines.append(f"| {share:.0%} | {side} / {HERE}, by seed | {len(ratios)} | | | | "
                                 f"{cell(Spread.of(ratios))} | |")  # fmt: skip
        ends = {side: [run[-1].utility / oracle for run in of_side] for side, of_side in sides.items()}
        lines.append("")
        for side, values in ends.items():
            mean, low, high = interval(np.array(values))
            lines.append(f"- at the end, {side}: {mean:.2%} of the oracle, interquartile mean with 95 % interval "
                         f"[{low:.2%}, {high:.2%}] over {len(values)} seeds")  # fmt: skip
    return lines


def draw(oracle: float, runs: Mapping[str, Mapping[str, list[list[Point]]]], path: Path) -> None:
    """Quality over CPU seconds, a line per seed, a panel per experiment."""
    figure = Figure(figsize=(4.6 * len(runs), 3.4), layout="constrained")
    for axes, (experiment, sides) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        for place, (side, of_side) in enumerate(sides.items()):
            colour = f"C{place}"
            for number, run in enumerate(of_side):
                label = side if number == 0 else None
                axes.plot([p.cpu_seconds for p in run], [100 * p.utility / oracle for p in run], color=colour,
                          linewidth=1, label=label)  # fmt: skip
        for share in SHARES:
            axes.axhline(100 * share, color="black", linewidth=0.5, linestyle=":")
        axes.set(title=experiment, xlabel="CPU seconds of training", ylabel="utility, % of the oracle", ylim=(90, 100))
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> str:
    """Run, write and return the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="COMMIT", help="what to compare with; left out: this checkout alone")
    parser.add_argument("--vary", action="append", default=[], metavar="WORDS", help="also this checkout with these")
    parser.add_argument("--experiment", default="quickstart,t2drl", metavar="A,B", help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/time_to_quality"), help="default %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for both sides, such as frames=120")
    parsed = parser.parse_args(arguments)
    said = [word for word, before in zip(arguments, ["", *arguments], strict=False) if "--output" not in (word, before)]
    origin = provenance(shlex.join(["python", "-m", "benchmarks.time_to_quality", *said])) | {"threads": 1}
    parsed.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, which removes the worktree
    frame_by_frame = [] if any(w.startswith("evaluation.every") for w in parsed.overrides) else [
        "evaluation.every_n_frames=5"
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        best = evaluate(cacher="oracle", allocator="exact", episodes=EPISODES, seed=SEED, output_dir=f"{work}/oracle")
        rows = best.schemes.set_index(["scheme", "metric"])["mean"]
        oracle = float(rows[best.name, "utility"])
        runs: dict[str, dict[str, list[list[Point]]]] = {}
        with worktree(parsed.base or "HEAD") as base:
            contenders = {HERE: (ROOT, [])} | ({BASE: (base, [])} if parsed.base else {})
            contenders |= {words: (ROOT, words.split()) for words in parsed.vary}
            for experiment in parsed.experiment.split(","):
                runs[experiment] = {side: [] for side in contenders}
                for seed in range(parsed.seeds):
                    for number, side in list(enumerate(contenders))[:: 1 if seed % 2 else -1]:
                        place = Path(work, f"{experiment}-{seed}-{number}")
                        place.mkdir()
                        tree, own = contenders[side]
                        words = [f"seed={seed}", *frame_by_frame, *own, *parsed.overrides]
                        run = train(tree, experiment, words, place)
                        runs[experiment][side].append(run)
                        last = run[-1]
                        print(f"{experiment}, seed {seed}, {side}: {last.utility / oracle:.2%} of the oracle after "
                              f"{last.cpu_seconds:.0f} CPU s", flush=True)  # fmt: skip
                    content = {"provenance": origin, "base": parsed.base, "oracle": oracle, "columns": Point._fields}
                    (parsed.output / "time_to_quality.json").write_text(
                        json.dumps(content | {"runs": runs}, indent=1) + "\n"
                    )
                    lines = page(origin, parsed.base or "no other", oracle, runs)
                    draw(oracle, runs, parsed.output / "time_to_quality.png")
                    text = "\n".join([*lines, "", "![Quality over CPU seconds](time_to_quality.png)"]) + "\n"
                    (parsed.output / "time_to_quality.md").write_text(text)
    return text


if __name__ == "__main__":
    print(main(sys.argv[1:]))
