"""What each speed trick of commit 05aa0e5 saves of the CPU time of a whole training run.

    python -m benchmarks.tricks [--experiments A,B] [--tricks A,B] [--rounds 3] [--output runs/tricks]

The commit is checked out beside this one for the time being, and `benchmarks.without` starts its runs: as they were,
and with one trick at a time replaced by the library's plain way. All runs of a round go on side by side, one at any
time: each is let run for a moment and then stopped until its next turn, so that whatever else the machine does hits all
of them alike. Rounds already in `--output` count, and new ones are added to them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Spread
from benchmarks.report import provenance

COMMIT = "05aa0e5"
ROOT = Path(__file__).resolve().parents[1]
LEAST, LEAST_PRIVATE = 5.0, 15.0  # % of a run's CPU time that a trick has to save, the latter with private API
TURN = 0.25  # s that a run goes on before the next one's turn
BLOCK = 5  # frames of a run that are compared with the same ones of another
PAUSE = 0.01  # s between two looks at whether a run has ended
FIXED = ("progress_bar=false",)


@dataclass(frozen=True)
class Trick:
    """One row of the report: two kinds of run, see `KINDS`, and what PyTorch does not promise of what it needs."""

    title: str
    given: str  # with it
    lacking: str  # without it
    private: str = ""
    judged: bool = True


KINDS: dict[str, tuple[str, bool]] = {  # of run: the tricks that are off, whether the update is compiled
    "as it was": ("", False),
    "as it was, again": ("", False),
    **{f"without {name}": (name, False) for name in (
        "fast_products", "keep_freed_memory", "mlp_chain", "fused_adam", "clip_gradients", "record", "packed_replay",
        "slot_phase",
    )},
    "without any": (
        "fast_products,keep_freed_memory,mlp_chain,fused_adam,clip_gradients,record,packed_replay,slot_phase", False,
    ),
    "compiled": ("", True),
    "compiled without narrow_products": ("narrow_products", True),
}  # fmt: skip

TRICKS = {
    "none": Trick("none: the same run twice", "as it was", "as it was, again", judged=False),
    "fast_products": Trick("`kernels.fast_products`, `linear`, `mm`, `addmm`", "as it was", "without fast_products"),
    "keep_freed_memory": Trick("`kernels.keep_freed_memory`", "as it was", "without keep_freed_memory"),
    "narrow_products": Trick("`narrow_products.NarrowProducts`, of a compiled run", "compiled",
                             "compiled without narrow_products", "`torch._inductor.custom_graph_pass`"),
    "mlp_chain": Trick("`networks.mlp_chain.MLPChain`", "as it was", "without mlp_chain"),
    "compiled": Trick("`compiled.CompiledUpdate`, compiling included", "compiled", "as it was",
                      "`torch._inductor.compile`"),
    "fused_adam": Trick("`optimizers.FusedAdam`", "as it was", "without fused_adam", "`torch._fused_adam_`"),
    "clip_gradients": Trick("`gradients.clip_gradients`", "as it was", "without clip_gradients",
                            "`torch._foreach_norm`"),
    "record": Trick("`system.records.record`", "as it was", "without record", "`TensorDict._new_unsafe`"),
    "packed_replay": Trick("`replay.PackedReplay`", "as it was", "without packed_replay",
                           "`LazyTensorStorage._storage`"),
    "slot_phase": Trick("`_slot` and `_align` of `envs.edge_aigc`", "as it was", "without slot_phase"),
    "all": Trick("all of those that do not compile", "as it was", "without any", judged=False),
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """What runs, and the frames and evaluations of a run as shipped, which a shorter one is stretched to."""

    overrides: tuple[str, ...]
    frames: int
    evaluations: int


SHORT = ("frames=40", "evaluation.every_n_frames=40", "checkpoint.every_n_frames=40")  # of 400, 100 and 100
EXPERIMENTS = {
    "quickstart": Experiment((), frames=80, evaluations=9),
    "t2drl_set": Experiment(SHORT, frames=400, evaluations=5),
    "t2drl": Experiment(SHORT, frames=400, evaluations=5),
}
MLPS = "t2drl"  # the only one of them whose actor is an MLP


class Cost(NamedTuple):
    """CPU seconds of a run: of the whole process, and parts of it."""

    total: float
    frames: list[float]
    evaluations: list[float]
    compiling: float

    def of_frame(self) -> float:
        """Of a frame once everything learns."""
        late = self.frames[len(self.frames) // 2 :]
        return sum(late) / len(late)

    def as_shipped(self, experiment: Experiment) -> float:
        """Of a whole run: what a shorter one leaves out is taken to cost as what it has of the same kind."""
        more_frames, more = experiment.frames - len(self.frames), experiment.evaluations - len(self.evaluations)
        return self.total + more_frames * self.of_frame() + more * sum(self.evaluations) / len(self.evaluations)


def by_block(one: Cost, other: Cost) -> list[float]:
    """How often `other`'s time `one` takes for frames, once everything learns, by blocks that ran side by side."""
    starts = range(len(one.frames) // 2, len(one.frames), BLOCK)
    return [sum(one.frames[i : i + BLOCK]) / sum(other.frames[i : i + BLOCK]) for i in starts]


Round = dict[str, Cost]  # by kind


# -- runs


@contextlib.contextmanager
def checkout() -> Iterator[Path]:
    """A working tree of `COMMIT`.

    Raises:
        SystemExit: this clone does not have it.
    """
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        made = subprocess.run([*git, "add", "--detach", str(tree), COMMIT], capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"error: commit {COMMIT} is not to be had: {made.stderr.strip()}")
        try:
            compile_all = [sys.executable, "-m", "compileall", "-q", "lightning_t2drl", "callbacks"]
            subprocess.run(compile_all, cwd=tree, check=True)  # lest the first round does it
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def kinds_for(tricks: Iterable[str], experiment: str) -> list[str]:
    """The kinds of run that tell what these tricks save, where the experiment uses them."""
    asked = [TRICKS[name] for name in tricks if name != "mlp_chain" or experiment == MLPS]
    return [kind for kind in KINDS if any(kind in (trick.given, trick.lacking) for trick in asked)]


def play_round(tree: Path, name: str, kinds: list[str], seed: int) -> Round:
    """One run of each kind, in turns."""
    with tempfile.TemporaryDirectory() as text:
        places = {kind: Path(text) / str(number) for number, kind in enumerate(kinds)}
        totals = take_turns({kind: _start(tree, name, kind, seed, place) for kind, place in places.items()})
        return {kind: _cost(total, places[kind], tree) for kind, total in totals.items()}


def _start(tree: Path, name: str, kind: str, seed: int, place: Path) -> subprocess.Popen[bytes]:
    """Start a run, in a process group of its own, and stop it at once."""
    place.mkdir()
    off, compiles = KINDS[kind]
    overrides = [f"experiment={name}", *EXPERIMENTS[name].overrides, *FIXED, f"seed={seed}", f"output_dir={place}/run"]
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(place / "compiled"),  # empty: nothing has been compiled before
    }
    script = ROOT / "benchmarks" / "without.py"
    command = [sys.executable, "-P", str(script), str(place / "parts.json"), off, *overrides]
    command += ["compile=true"] * compiles
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    os.killpg(process.pid, signal.SIGSTOP)
    return process


def take_turns(running: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Let stopped processes go on in turns until all have ended; CPU seconds of each, with those it started.

    One that fails ends them all.
    """
    seconds: dict[str, float] = {}
    order = random.Random(0)  # anew each time: in a fixed one each would always meet the caches of the same neighbour
    try:
        while len(seconds) < len(running):
            going = [name for name in running if name not in seconds]
            for name in order.sample(going, len(going)):
                if (used := _turn(running[name])) is not None:
                    seconds[name] = used
                    if running[name].returncode:
                        return seconds
    finally:
        for name in running.keys() - seconds.keys():
            os.killpg(running[name].pid, signal.SIGKILL)
            running[name].wait()
    return seconds


def _turn(process: subprocess.Popen[bytes]) -> float | None:
    """CPU seconds of the process, if it ended in this turn."""
    os.killpg(process.pid, signal.SIGCONT)
    end = time.monotonic() + TURN
    while time.monotonic() < end:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return used.ru_utime + used.ru_stime
        time.sleep(PAUSE)
    os.killpg(process.pid, signal.SIGSTOP)
    return None


def _cost(total: float, place: Path, tree: Path) -> Cost:
    try:
        parts = json.loads((place / "parts.json").read_text())
    except FileNotFoundError:
        raise SystemExit("error: a run failed:\n" + (place / "log").read_text()[-2000:]) from None
    assert Path(parts["package"]).is_relative_to(tree), f"{parts['package']} is not of {tree}"
    return Cost(total, parts["frames"], parts["evaluations"], sum(parts["compiling"]))


# -- the report


def machine() -> dict[str, Any]:
    """Where the figures come from, with the libraries that multiply matrices."""
    built = torch.__config__.show()
    libraries = (r"Math Kernel Library Version (\S+)", r"MKL-DNN (v\S+)", r"CPU capability usage: (\S+)")
    mkl, onednn, capability = (found[1] if (found := re.search(text, built)) else "none" for text in libraries)
    vendor = ""
    with contextlib.suppress(OSError):
        vendor = "".join(re.findall(r"^vendor_id\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[:1])
    where = provenance("", "")
    return {key: value for key, value in where.items() if key not in ("command", "budget")} | {
        "threads": 1,
        "vendor": vendor,
        "mkl": mkl,
        "onednn": onednn,
        "capability": capability,
        "permission_reaches_onednn": _permission_matters(),
        "tried": COMMIT,
    }


def _permission_matters() -> bool:
    """Whether permission to round to bfloat16, by which `fast_products` reaches oneDNN, changes a product at all."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    x, before = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), setting.fp32_precision
    plain = x @ x
    setting.fp32_precision = "bf16"
    try:
        return not torch.equal(x @ x, plain)
    finally:
        setting.fp32_precision = before


def holds(costs: Round, kinds: list[str]) -> bool:
    """Whether a round has run all of these kinds, and there are any."""
    return bool(kinds) and costs.keys() >= set(kinds)


def rows(rounds: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """The table: one row per trick and experiment."""
    out = []
    for key, trick in TRICKS.items():
        of_trick: list[dict[str, Any]] = []
        for name, played in rounds.items():
            kinds = kinds_for([key], name)
            pairs = [(costs[trick.lacking], costs[trick.given]) for costs in played if holds(costs, kinds)]
            if not pairs:
                continue
            whole = [a.as_shipped(EXPERIMENTS[name]) / b.as_shipped(EXPERIMENTS[name]) for a, b in pairs]
            of_trick.append({
                "trick": trick.title,
                "private": trick.private,
                "experiment": name,
                "rounds": len(pairs),
                "ratio": Spread.of(whole),
                "frame_ratio": Spread.of([ratio for a, b in pairs for ratio in by_block(a, b)]),
                "saved_percent": saved_percent(Spread.of(whole).median),
            })  # fmt: skip
        # One verdict for all experiments.
        out += [row | {"verdict": verdict(trick, [row["ratio"] for row in of_trick])} for row in of_trick]
    return out


def saved_percent(ratio: float) -> float:
    return 100 * (1 - 1 / ratio)


def verdict(trick: Trick, ratios: list[Spread]) -> str:
    """What the experiment in which it saves most says; nothing where its quartiles lie on both sides of the limit."""
    best, least = max(ratios, key=lambda ratio: ratio.median), LEAST_PRIVATE if trick.private else LEAST
    if not trick.judged:
        return "–"
    if saved_percent(best.lower) < least <= saved_percent(best.upper):
        return "too close to call"
    return "stays" if saved_percent(best.median) >= least else "goes"


def page(origin: dict[str, Any], rounds: dict[str, list[Round]]) -> str:
    o = origin
    reaches = "changes products on this processor"
    if not o["permission_reaches_onednn"]:
        reaches = "changes no bit of a product on this processor, so that oneDNN was not tried"
    table = rows(rounds)
    staying = list(dict.fromkeys(row["trick"] for row in table if row["verdict"] == "stays"))
    close = list(dict.fromkeys(row["trick"] for row in table if row["verdict"] == "too close to call"))
    lines = [
        "# Speed tricks on trial",
        "",
        f"What each speed trick of commit {COMMIT} saves of the CPU time of a whole training run.",
        "",
        f"- {o['date']}, by " + ", ".join(f"`{command}`" for command in o["commands"]),
        f"- {o['cpu']} ({o['vendor']}, PyTorch uses {o['capability']}), {o['cores']} cores, {o['system']}; Python "
        f"{o['python']}, torch {o['torch']} with MKL {o['mkl']} and oneDNN {o['onednn']}; one thread per process",
        f"- permission to round to bfloat16, by which `fast_products` reaches oneDNN, {reaches}",
        "- ratio: CPU time without the trick over that with it, median [quartiles] over rounds. In a round every kind "
        f"of run goes on by turns of {TURN} s, one at any time, all with one seed, so that what is compared was "
        f"measured in the same minutes. A frame: over blocks of {BLOCK} frames once everything learns.",
        "- 'without' is the library's plain way: no permission and PyTorch's own products; glibc's defaults; no pass "
        "of the compiler; autograd through the chain; no compiling; `Adam(fused=True)`; `clip_grad_norm_`; "
        "`TensorDict(...)`; `ReplayBuffer` over a TensorDict; a look at every world's slot in every slot",
        f"- a trick stays if it saves {LEAST:g} % of a run of some experiment, {LEAST_PRIVATE:g} % where it needs "
        f"private API. What stays: {'; '.join(staying) or 'none'}; too close to call: {'; '.join(close) or 'none'}",
        "",
        *_table(("trick", "private API", "experiment", "rounds", "whole run, without / with", "saved",
                 "a frame, without / with", "verdict"), 3),
    ]  # fmt: skip
    for row in table:
        cells = (row["trick"], row["private"] or "no", row["experiment"], row["rounds"], _spread(row["ratio"]),
                 f"{row['saved_percent']:+.1f} %", _spread(row["frame_ratio"]), row["verdict"])  # fmt: skip
        lines.append(_row(cells))
    lines += [
        "",
        "## What the runs took",
        "",
        "CPU seconds, medians. They rise with what else the machine does; only runs of one round are compared.",
        "",
    ]
    lines += _table(("experiment", "run", "whole run as shipped", "whole run as measured", "of it all but frames and "
                     "evaluations", "of it compiling", "an evaluation", "a frame"), 2)  # fmt: skip
    for name, played in rounds.items():
        for kind in KINDS:
            if costs := [costs[kind] for costs in played if kind in costs]:
                lines.append(_row((name, kind, *_seconds(costs, EXPERIMENTS[name]))))
    lines += ["", *(f"- {name}: `{shlex.join(_shown(name))}`" for name, played in rounds.items() if played)]
    lines.append(
        "- `quickstart` is measured as it is shipped, 80 frames. The others are shipped with 400: to a shorter run are "
        "added the frames that it lacks, at the cost of the mean frame of its second half, and the evaluations that it "
        "lacks, at the mean of those it has. Compiling is paid once, in the first update, with nothing compiled before."
    )
    return "\n".join(lines) + "\n"


def _seconds(costs: list[Cost], experiment: Experiment) -> Iterator[str]:
    """Cells of the second table."""
    for values in (
        [c.as_shipped(experiment) for c in costs],
        [c.total for c in costs],
        [c.total - sum(c.frames) - sum(c.evaluations) for c in costs],
        [c.compiling for c in costs],
        [sum(c.evaluations) / len(c.evaluations) for c in costs],
        [c.of_frame() for c in costs],
    ):
        yield f"{Spread.of(values).median:.3g}"


def _table(titles: tuple[str, ...], words: int) -> list[str]:
    """The head of a table whose first columns hold words, the others numbers."""
    return [_row(titles), _row(["---"] * words + ["---:"] * (len(titles) - words))]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _shown(name: str) -> list[str]:
    return ["python", "train.py", f"experiment={name}", *EXPERIMENTS[name].overrides, *FIXED]


def _spread(spread: Spread) -> str:
    spans = f" [{spread.lower:.3f}, {spread.upper:.3f}]" if spread.upper > spread.lower else ""  # none of one round
    return f"{spread.median:.3f}{spans}"


def load(path: Path, origin: dict[str, Any]) -> dict[str, list[Round]]:
    """The rounds of earlier calls, whose commands come before that of this one in `origin`.

    Raises:
        SystemExit: they are of another machine.
    """
    if not path.exists():
        return {name: [] for name in EXPERIMENTS}
    content = json.loads(path.read_text())
    for key in ("cpu", "capability", "cores", "python", "torch"):
        if content["provenance"][key] != origin[key]:
            raise SystemExit(f"error: {path} holds rounds of another machine ({key}: {content['provenance'][key]})")
    origin["commands"] = list(dict.fromkeys([*content["provenance"]["commands"], *origin["commands"]]))
    return {
        name: [{kind: Cost(**cost) for kind, cost in costs.items()} for costs in played]
        for name, played in content["rounds"].items()
    }


def write(directory: Path, origin: dict[str, Any], rounds: dict[str, list[Round]]) -> None:
    table = [row | {key: asdict(row[key]) for key in ("ratio", "frame_ratio")} for row in rows(rounds)]
    raw = {
        name: [{kind: {key: _rounded(value) for key, value in cost._asdict().items()} for kind, cost in costs.items()}
               for costs in played]
        for name, played in rounds.items()
    }  # fmt: skip
    settings = {name: asdict(experiment) for name, experiment in EXPERIMENTS.items()}
    content = {"provenance": origin, "experiments": settings, "table": table, "rounds": raw}
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)
    (directory / "tricks.json").write_text(text + "\n")
    (directory / "README.md").write_text(page(origin, rounds))


def _rounded(value: float | list[float]) -> float | list[float]:
    return [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # by way of `finally`
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tricks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="default %(default)s")
    parser.add_argument("--tricks", default=",".join(TRICKS), help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each experiment; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/tricks"), help="directory; default %(default)s")
    given = parser.parse_args()
    asked, tricks = given.experiments.split(","), given.tricks.split(",")
    for option, names, there_are in (("experiments", asked, EXPERIMENTS), ("tricks", tricks, TRICKS)):
        if unknown := set(names) - there_are.keys():
            parser.error(f"--{option}: {', '.join(sorted(unknown))}; there are {', '.join(there_are)}")
    origin = machine() | {"commands": [shlex.join(["python", "-m", "benchmarks.tricks", *sys.argv[1:]])]}
    given.output.mkdir(parents=True, exist_ok=True)
    rounds = load(given.output / "tricks.json", origin)
    with checkout() as tree:
        for number, name in itertools.product(range(given.rounds), asked):
            kinds = kinds_for(tricks, name)
            if kinds and sum(holds(costs, kinds) for costs in rounds[name]) <= number:
                start = time.perf_counter()
                rounds[name].append(play_round(tree, name, kinds, seed=number))
                print(f"{name}, round {number + 1}: {time.perf_counter() - start:.0f} s", flush=True)
                write(given.output, origin, rounds)
    write(given.output, origin, rounds)
    print(page(origin, rounds))


if __name__ == "__main__":
    main()
