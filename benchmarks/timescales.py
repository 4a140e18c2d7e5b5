"""How long a frame should be: what caches can earn when they are decided every slot, every few, or once an episode.

    python -m benchmarks.timescales [--envs paper drift] [--slots 400] [--output DIRECTORY | --publish]

No learning: the popularity state is known, every slot is allocated near-exactly, and the caches are planned by dynamic
programming. Loading a GB costs the same whatever the frame is.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.report import Section
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.figures import plt, save, style
from lightning_t2drl.run.labels import PALETTE, End, label_ends
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.bounds import CacheTable, best_held, best_plan, cache_table

FRAMES = (1, 2, 5, 10, 20, 50, 100)  # slots
PACES = (1, 5, 10)  # slots between two moves of popularity
EPISODE = 100  # slots
CHARGES = (0.0, 0.01, 0.03, 0.1)  # utility of a slot per GB
HELD = "held for good"


def plans(env: str, table: CacheTable) -> list[dict[str, Any]]:
    """Utility per slot, less loading, by pace of popularity, charge and slots per frame."""
    rows = []
    for pace, charge in product(PACES, CHARGES):
        row: dict[str, Any] = {
            "popularity moves every": f"{pace} slots" if pace > 1 else "slot",
            "charge per GB": charge,
        }
        for slots in FRAMES:
            keys = {"slots_per_frame": slots, "frames_per_episode": EPISODE // slots, "popularity_change_every": pace}
            scenario = load_scenario(env, **keys, switch_cost_per_gb=charge / slots)
            row[f"frame of {slots}"] = f"{best_plan(scenario, table):.4f}"
        row[HELD] = f"{best_held(scenario, table):.4f}"
        rows.append(row)
    return rows


def draw(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Utility over the length of a frame; a row per environment, a panel per pace of popularity."""
    style()
    figure, rows = plt.subplots(
        len(tables), len(PACES), figsize=(9, 2.9 * len(tables)), squeeze=False, sharex=True, sharey="row"
    )
    for panels, (env, table) in zip(rows, tables.items(), strict=True):
        for axes, pace in zip(panels, PACES, strict=True):
            of_pace = table[PACES.index(pace) * len(CHARGES) :][: len(CHARGES)]
            ends = []
            for row, colour in zip(of_pace, PALETTE, strict=False):
                values = [float(row[f"frame of {slots}"]) for slots in FRAMES]
                axes.plot(FRAMES, values, color=colour, marker="o", ms=3)
                axes.axhline(float(row[HELD]), color=colour, lw=0.6, ls=":")
                ends.append(End(FRAMES[-1], values[-1], f"{row['charge per GB']:g} per GB", colour))
            moves = "every slot" if pace == 1 else f"every {pace} slots"
            axes.set(xscale="log", title=f"{env}, moves {moves}", xticks=FRAMES, xticklabels=FRAMES)
            axes.minorticks_off()
        label_ends(axes, ends)
        panels[0].set_ylabel("utility less loading, per slot")
    for axes in rows[-1]:
        axes.set_xlabel("slots per frame")
    save(figure, path)


def main(arguments: list[str]) -> str:
    """Plan, write and return the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timescales", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--envs", nargs="+", default=["paper", "drift"], help="of one cell; default %(default)s")
    parser.add_argument("--slots", type=int, default=400, help="per popularity state; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/timescales"), help="directory; default %(default)s")
    parser.add_argument("--publish", dest="output", action="store_const", const=Path("results/timescales"))
    parsed = parser.parse_args(arguments)
    if parsed.slots < 1:
        raise UserError(f"--slots: {parsed.slots} is below 1")
    origin = report.provenance(shlex.join(["python", "-m", "benchmarks.timescales", *arguments]))
    tables = {}
    with Progress(console=Console(stderr=True)) as progress:
        for env in parsed.envs:
            task = progress.add_task(f"{env}, popularity states")
            table = cache_table(
                load_scenario(env),
                parsed.slots,
                seed=0,
                progress=lambda done, total, task=task: progress.update(task, completed=done, total=total),
            )
            tables[env] = plans(env, table)
    setting = (
        f"Utility per slot, less loading, of an episode of {EPISODE} slots that begins with nothing cached. "
        f"'{HELD}': the best cache that is never changed (dotted)."
    )
    sections = {env: Section(f"env={env}", setting, rows) for env, rows in tables.items()}
    list(sections.values())[-1].figures.append("figure.png")
    method = (
        f"popularity states known; every feasible cache on the same {parsed.slots} slots of each state, allocated "
        "near-exactly (the proven upper bound); planned by backward induction. A charge is utility of a slot per GB "
        "loaded, `env.switch_cost_per_gb` times the slots of a frame"
    )
    draw(tables, parsed.output / "figure.png")
    return report.write(parsed.output, origin, sections, "How long a frame should be", method)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
