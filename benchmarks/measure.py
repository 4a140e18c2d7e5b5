"""Timing several contenders side by side, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from torch.profiler import ProfilerActivity, profile

Key = TypeVar("Key", bound=Hashable)
Job = Callable[[], object]
Advance = Callable[[float], None]  # told the share of the work that is done

BLOCK = 0.005  # s; a contender's turn takes about this long, so that the clock's own cost does not count
WARM_UP = 0.1  # s of calls per contender before any is timed, at least two calls


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def interleave(
    contenders: Mapping[Key, Job], seconds: float, rounds: int = 5, advance: Advance = lambda done: None
) -> dict[Key, np.ndarray]:
    """Time all contenders in turn, round after round, in an order drawn anew each time.

    In a fixed order each would always meet the caches that the same neighbour leaves behind, which is worth some
    percent to whoever comes after one of its own kind.

    Args:
        contenders: what to call, by name.
        seconds: how long to go on, warm-up not counted.
        rounds: least number of rounds, however long they take.
        advance: told the share that is done.

    Returns:
        Seconds per call by contender, [rounds] each; round i of all contenders was measured side by side.
    """
    warm_up = min(WARM_UP, seconds / 10)
    calls = {name: max(1, round(BLOCK / _warm_up(job, warm_up))) for name, job in contenders.items()}
    timings: dict[Key, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    start = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name in order.sample(list(contenders), len(contenders)):
            timings[name].append(_seconds_per_call(contenders[name], calls[name]))
        done += 1
        advance(min(done / rounds, (time.perf_counter() - start) / seconds if seconds else 1.0, 1.0))
    return {name: np.array(values) for name, values in timings.items()}


def _warm_up(job: Job, seconds: float) -> float:
    """Call until caches, compilers and lazy buffers have settled; seconds of the fastest call but the first."""
    job()
    start = time.perf_counter()
    fastest = _seconds_per_call(job, 1)
    while time.perf_counter() - start < seconds:
        fastest = min(fastest, _seconds_per_call(job, 1))
    return fastest


def _seconds_per_call(job: Job, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls


def share_of(advance: Advance, part: int, parts: int) -> Advance:
    """`advance` for one of several equal parts of the work."""
    return lambda done: advance((part + done) / parts)


def table(
    timings: Mapping[str, np.ndarray], baseline: str | None = None, scale: float = 1e3, unit: str = "ms"
) -> list[dict[str, Any]]:
    """One row per contender: time per call and, round by round, how many times faster than `baseline` it is."""
    rows = []
    for name, seconds in timings.items():
        row: dict[str, Any] = {"contender": name, unit: Spread.of(seconds * scale)}
        if baseline is not None:
            row["times faster"] = Spread.of(timings[baseline] / seconds)
        rows.append(row)
    return rows


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The k of y ~ x^k: least-squares slope in log-log coordinates."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def peak_bytes(job: Job) -> int:
    """Most bytes of tensors alive at once among those that two calls of `job` allocate, by PyTorch's own count."""
    job()
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        job()
        job()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        recorded.export_chrome_trace(trace.name)
        with open(trace.name) as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return int(np.cumsum([event["args"]["Bytes"] for event in events]).max(initial=0))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library announces itself there, past Python's `sys.stderr`."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
