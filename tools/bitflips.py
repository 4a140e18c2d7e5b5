"""Flips random bits in a checkpoint and loads it: every flip is found, or loads identical data; none is a traceback.

python -m tools.bitflips --flips 10000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.survival import RUN, differences, finish, start
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint
from lightning_t2drl.suite.benchmark import commit


def flip(path: Path, flips: int, seed: int) -> dict[str, int]:
    """Load copies of a checkpoint with one bit flipped each, and count what came of it.

    Args:
        path: of a good checkpoint.
        flips: how many copies.
        seed: of the places.

    Returns:
        Numbers of flips that were `detected` (one line says so), `harmless` (identical data), `silent` (other data) or
        gave a `traceback`.
    """
    rng = random.Random(seed)
    good, content = path.read_bytes(), load_checkpoint(path)
    counts = Counter(detected=0, harmless=0, silent=0, traceback=0)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "flipped.ckpt"
        copy.write_bytes(good)
        with open(copy, "r+b", buffering=0) as file:
            for _ in range(flips):
                place, bit = rng.randrange(len(good)), 1 << rng.randrange(8)
                _put(file, place, good[place] ^ bit)
                counts[_outcome(copy, content)] += 1
                _put(file, place, good[place])
    return dict(counts)


def _put(file: Any, place: int, byte: int) -> None:
    file.seek(place)
    file.write(bytes([byte]))


def _outcome(path: Path, content: dict[str, Any]) -> str:
    try:
        loaded = load_checkpoint(path)
    except UserError as error:
        return "detected" if "\n" not in str(error) else "traceback"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"
    return "harmless" if not differences(content, loaded) else "silent"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bitflips", description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000, help="how many bits, one at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    parser.add_argument("--output", type=Path, default=Path("runs/bitflips.json"), help="where the outcome goes")
    given = parser.parse_args()
    begin, begun_at = time.perf_counter(), commit()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        finish(start([*RUN, "frames=8", f"output_dir={directory}"], Path(place) / "log"), Path(place) / "log")
        path = in_order(directory / "checkpoints")[-1]
        outcome = {"bytes": path.stat().st_size, "flips": given.flips, **flip(path, given.flips, given.seed)}
    command = " ".join(["python -m tools.bitflips", *sys.argv[1:]])
    seconds = round(time.perf_counter() - begin)
    text = json.dumps({"command": command, "commit": begun_at, **outcome, "seconds": seconds}, indent=2)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output, text + "\n")
    print(text)
    if outcome["silent"] or outcome["traceback"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
