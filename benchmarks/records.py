"""What records cost an evaluation: with and without them, in turn.

python -m benchmarks.records [CHECKPOINT] [--episodes 100] [--pairs 5] [--output runs/records | --publish]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from benchmarks.measure import Spread
from benchmarks.report import Section
from lightning_t2drl.run.commands import prepare_process, run

SHIPPED = "policies/t2drl-mixed"


def seconds(checkpoint: str, episodes: int, records: bool) -> tuple[float, float]:
    """CPU seconds of one evaluation, and the size of its records in MB."""
    with tempfile.TemporaryDirectory() as directory:
        words = [f"checkpoint={checkpoint}", f"episodes={episodes}", "references=[]", "progress_bar=false"]
        start = time.process_time()
        run("evaluate", [*words, f"records={str(records).lower()}", f"output_dir={directory}/evaluation"])
        spent = time.process_time() - start
        return spent, sum(path.stat().st_size for path in Path(directory).rglob("*.parquet")) / 1e6


def measure(checkpoint: str, episodes: int, pairs: int) -> Section:
    """Pairs of evaluations, each time the other one first."""
    seconds(checkpoint, 2, records=True)  # imports
    spent: dict[bool, list[float]] = {False: [], True: []}
    size = 0.0
    for pair in range(pairs):
        for records in (False, True) if pair % 2 else (True, False):
            found, written = seconds(checkpoint, episodes, records)
            spent[records].append(found)
            size = max(size, written)
    ratio = np.array(spent[True]) / np.array(spent[False])
    rows = [
        {"evaluation": "without records", "CPU s": Spread.of(spent[False])},
        {"evaluation": "with records", "CPU s": Spread.of(spent[True]), "with / without": Spread.of(ratio), "MB": size},
    ]
    return Section("Evaluations", f"{checkpoint}, {episodes} episodes, no references; {pairs} pairs", rows)


def main(arguments: list[str]) -> str:
    """Measure, write and return the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED, help="default %(default)s")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation; default %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="of evaluations; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/records"), help="directory; default %(default)s")
    parser.add_argument("--publish", dest="output", action="store_const", const=Path("results/records"))
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prepare_process()
    origin = report.provenance(shlex.join(["python", "-m", "benchmarks.records", *arguments]))
    section = measure(parsed.checkpoint, parsed.episodes, parsed.pairs)
    how = "denormals flushed; median [quartiles] over pairs, the other one first in each; ratios pair by pair"
    return report.write(parsed.output, origin, {"evaluations": section}, "What records cost", how)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
