"""(e) Training frames, split into their parts: real training runs with a stopwatch at their seams."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.budget import Budget
from benchmarks.measure import Advance, share_of
from benchmarks.report import Section
from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.d3pg import D3PGAllocator
from lightning_t2drl.cachers.q_learning import QLearningCacher
from lightning_t2drl.callbacks import FrameCheckpoint, PeriodicEvaluation
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop import two_timescale
from lightning_t2drl.loop.finite import FiniteWatch
from lightning_t2drl.loop.metrics import Meters
from lightning_t2drl.loop.replay import Replay
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.run import cli
from lightning_t2drl.run.loggers import FrameCSVLogger

PARTS: dict[str, list[tuple[Any, str]]] = {
    "environment": [(EdgeAIGCEnv, name) for name in ("latch", "play", "reset", "observe")],
    "allocator's and cacher's state": [(ActorCriticAllocator, "state"), (QLearningCacher, "state")],
    "decisions": [
        (Allocator, "decide"),
        (ActorCriticAllocator, "act"),
        (D3PGAllocator, "act"),
        (QLearningCacher, "decide"),
    ],
    "replay": [(Replay, "extend"), (Replay, "sample")],
    "allocator updates": [(ActorCriticAllocator, "update")],
    "cacher updates": [(QLearningCacher, "update")],
    "evaluation": [(PeriodicEvaluation, "on_train_batch_end")],
    "metrics and meters": [
        (two_timescale, "slot_metrics"),
        (Meters, "add"),
        (Meters, "take"),
        (FiniteWatch, "add"),
        (FiniteWatch, "check"),
    ],
    "checkpoints": [(FrameCheckpoint, "on_train_batch_end")],
    "logging": [(FrameCSVLogger, "log_metrics")],
}
REST = "Lightning and the rest of the loop"
BOOKKEEPING = ("metrics and meters", "logging", "checkpoints", REST)


class Stopwatch:
    """Seconds by part; of calls within calls the outermost counts, so that parts never overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = False

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return function(*args, **kwargs)
            self.running = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start
                self.running = False

        return timed


@contextlib.contextmanager
def stopwatch_at_seams(
    marks: dict[int, tuple[float, dict[str, float]]], advance: Callable[[int], None]
) -> Iterator[None]:
    """While this lasts, training fills `marks`: clock and seconds by part at the start of each frame."""
    watch = Stopwatch()
    step = TwoTimescaleModule.training_step

    def marked_step(module: TwoTimescaleModule, *args: Any) -> None:
        marks[module.frame] = (time.perf_counter(), dict(watch.seconds))
        advance(module.frame)
        return step(module, *args)

    with contextlib.ExitStack() as patches:
        for part, seams in PARTS.items():
            for owner, name in seams:
                patches.enter_context(mock.patch.object(owner, name, watch.around(part, getattr(owner, name))))
        patches.enter_context(mock.patch.object(TwoTimescaleModule, "training_step", marked_step))
        yield


def run(budget: Budget, advance: Advance) -> Section:
    rows: list[dict[str, Any]] = []
    for part, experiment in enumerate(budget.experiments):
        rows += split(budget, experiment, share_of(advance, part, len(budget.experiments)))
    return Section(
        "A training frame",
        f"Frames after {budget.warm_up_frames} of warm-up, at the experiments' default settings, without the final "
        "evaluation.",
        rows,
        [
            f"'All of ... bookkeeping' sums {', '.join(BOOKKEEPING)}; updates include backward and optimizer steps as "
            "Lightning runs them.",
            "Evaluation during training and checkpoints (every 20 frames) are spread over the frames.",
        ],
    )


def split(budget: Budget, experiment: str, advance: Advance) -> list[dict[str, Any]]:
    """Milliseconds per frame by part."""
    first, frames = budget.warm_up_frames, budget.frames
    last = first + frames
    overrides = [f"experiment={experiment}", f"frames={last + 1}", "evaluation.final_episodes=0", "figures=false"]
    marks: dict[int, tuple[float, dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.redirect_stdout(io.StringIO()),
        stopwatch_at_seams(marks, lambda frame: advance(frame / last)),
    ):
        arguments = [*overrides, *budget.frame_overrides, f"output_dir={directory}/run"]
        cli.run("train", arguments)
    (start, before), (end, after) = marks[first], marks[last]
    total = end - start
    seconds = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in PARTS}
    seconds[REST] = total - sum(seconds.values())
    seconds["all of Lightning, logging and bookkeeping"] = sum(seconds[part] for part in BOOKKEEPING)
    seconds["whole frame"] = total
    return [
        {"experiment": experiment, "part": part, "ms per frame": 1e3 * s / frames, "% of the frame": 100 * s / total}
        for part, s in seconds.items()
    ]
