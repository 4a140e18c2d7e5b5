"""Whole training runs of this checkout beside those of another commit: `python -m benchmarks.whole_run --base COMMIT`.

The other commit is checked out into a temporary git worktree and runs its own train.py with the installed
dependencies. Runs take turns, one thread each. CPU time of the whole process counts, from the first import to the final
evaluation: what else the machine does disturbs it least. Writes `whole_run.json` and `whole_run.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Spread
from benchmarks.report import cell, origin_lines, provenance

ROOT = Path(__file__).resolve().parents[1]
HERE, BASE = "this checkout", "base"
# What version 0.1 called an experiment.
OLD_NAMES = {
    "t2drl": "t2drl_set",
    "t2drl_ddpg": "t2drl_ddpg_set",
    "t2drl_literal": "t2drl",
    "t2drl_ddpg_literal": "t2drl_ddpg",
}


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A commit's files in a directory of their own, while this lasts."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "worktree", *arguments], cwd=ROOT, check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        git("add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("remove", "--force", str(tree))


def name_in(tree: Path, experiment: str) -> str:
    """What a tree calls the experiment that here is `experiment`."""
    is_old = (tree / "configs/experiment/t2drl_set.yaml").exists()
    return OLD_NAMES.get(experiment, experiment) if is_old else experiment


def run_in(tree: Path, command: list[str]) -> None:
    """Run a command on a tree's own code, on one thread.

    Raises:
        RuntimeError: it failed; with the last lines it wrote.
    """
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environment = os.environ | threads | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")


def train(tree: Path, experiment: str, overrides: list[str], output: Path) -> dict[str, float]:
    """One run in a process of its own: CPU seconds and the final utility; raises as `run_in`."""
    name = name_in(tree, experiment)
    command = [sys.executable, str(tree / "train.py"), f"experiment={name}", "progress_bar=false", *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_in(tree, [*command, f"output_dir={output}"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((output / "summary.json").read_text())
    return {
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "training_seconds": summary["training_seconds"],
        "utility": summary["total_utility"],
    }


def pairs(base: Path, experiment: str, overrides: list[str], count: int, work: Path) -> Iterator[dict[str, list[dict]]]:
    """The runs so far by side, after each pair; who goes first alternates."""
    runs: dict[str, list[dict]] = {HERE: [], BASE: []}
    trees = {HERE: ROOT, BASE: base}
    for pair in range(count):
        for side in (HERE, BASE) if pair % 2 else (BASE, HERE):
            output = work / f"{experiment}-{pair}-{side.split()[0]}"
            run = train(trees[side], experiment, [f"seed={pair}", *overrides], output)
            print(f"{experiment}, pair {pair + 1}, {side}: {run['cpu_seconds']:.1f} CPU s", flush=True)
            runs[side].append(run)
        yield runs


def page(origin: dict[str, Any], base: str, runs: dict[str, dict[str, list[dict]]]) -> str:
    """The runs as a Markdown page."""
    lines = ["# Whole training runs", "", *origin_lines(origin), ""]
    lines += [
        f"Runs of this checkout and of {base} take turns; cells: median [quartiles]; a ratio is that of one pair.",
        "",
        "| experiment | pairs | CPU s, base | CPU s, this | this / base | utility, base | utility, this |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for experiment, sides in runs.items():
        values = {
            (side, key): np.array([run[key] for run in of_side])
            for side, of_side in sides.items()
            for key in of_side[0]
        }
        here, there = values[HERE, "cpu_seconds"], values[BASE, "cpu_seconds"]
        columns = [there, here, here / there, values[BASE, "utility"], values[HERE, "utility"]]
        spreads = " | ".join(cell(Spread.of(column)) for column in columns)
        lines.append(f"| {experiment} | {len(here)} | {spreads} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> str:
    """Run, write and return the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="COMMIT", help="what to compare with")
    parser.add_argument("--experiment", default="quickstart", metavar="A,B", help="default %(default)s")
    parser.add_argument("--pairs", type=int, default=3, help="of runs per experiment; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/whole_run"), help="directory; default %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for both sides, such as frames=20")
    parsed = parser.parse_args(arguments)
    origin = provenance(" ".join(["python -m benchmarks.whole_run", *arguments])) | {"threads": 1}
    parsed.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, which removes the worktree
    runs: dict[str, dict[str, list[dict]]] = {}
    with worktree(parsed.base) as base, tempfile.TemporaryDirectory() as work:
        for experiment in parsed.experiment.split(","):
            for so_far in pairs(base, experiment, parsed.overrides, parsed.pairs, Path(work)):
                runs[experiment] = so_far
                content = {"provenance": origin, "base": parsed.base, "runs": runs}
                (parsed.output / "whole_run.json").write_text(json.dumps(content, indent=1) + "\n")
                (parsed.output / "whole_run.md").write_text(page(origin, parsed.base, runs))
    return page(origin, parsed.base, runs)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
