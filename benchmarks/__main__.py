"""Speed beside plain code and peers, by one command: `python -m benchmarks [--quick] [--only decision,update]`.

Everything runs in one process on one thread; the contenders of a table take turns. Writes `speed.json` and a
Markdown page `README.md` with figures to `runs/speed`, with `--publish` to `results/speed`.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import bound, decision, drift, environment, frame, growth, replay, report, update
from benchmarks.budget import BUDGETS, Budget
from benchmarks.measure import Advance
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import prepare_process

ITEMS: dict[str, Callable[[Budget, Advance], report.Section]] = {
    "decision": decision.run,
    "update": update.run,
    "environment": environment.run,
    "replay": replay.run,
    "frame": frame.run,
    "growth": growth.run,
    "bound": bound.run,
    "drift": drift.run,
}


class Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m benchmarks --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: an argument, or an item of `--only`, that there is not.
    """
    parser = Arguments(
        prog="python -m benchmarks", description="Measure the project's speed beside plain code and peers."
    )
    parser.add_argument("--quick", dest="budget", action="store_const", const="quick", default="default",
                        help="some three minutes instead of fifteen")  # fmt: skip
    parser.add_argument("--only", default=",".join(ITEMS), metavar="A,B", help=f"of {', '.join(ITEMS)}; default all")
    parser.add_argument("--output", type=Path, default=Path("runs/speed"), help="directory; default %(default)s")
    parser.add_argument("--publish", dest="output", action="store_const", const=Path("results/speed"),
                        help="write to results/speed")  # fmt: skip
    parser.add_argument("--budget", choices=BUDGETS, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.only = parsed.only.split(",")
    for item in parsed.only:
        if item not in ITEMS:
            raise UserError(f"--only: {item!r} is none of {', '.join(ITEMS)}")
    try:
        parsed.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {parsed.output} cannot be written ({error.strerror})") from None
    return parsed


def main(arguments: list[str]) -> str:
    """Measure, write and return the page."""
    parsed = parse(arguments)
    budget = BUDGETS[parsed.budget]
    torch.set_num_threads(1)
    prepare_process()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    provenance = report.provenance(command) | {
        "budget": budget.name
    }  # before anything is written: that would make the tree dirty
    sections = {}
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        tasks = {name: progress.add_task(name, total=1.0, start=False) for name in ITEMS if name in parsed.only}
        for name, task in tasks.items():
            progress.start_task(task)
            sections[name] = ITEMS[name](budget, functools.partial(_advance, progress, task))
            _advance(progress, task, 1.0)
    if "growth" in sections:
        growth.draw(sections["growth"], parsed.output)
    return report.write(parsed.output, provenance, sections)


def _advance(progress: Progress, task: TaskID, done: float) -> None:
    progress.update(task, completed=done)


if __name__ == "__main__":
    try:
        page = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(page)
