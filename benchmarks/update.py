"""(b) One gradient update: sample, critic, actor, targets."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, interleave, share_of, table
from benchmarks.reference import TensorReplay
from benchmarks.report import Section
from benchmarks.subjects import (
    SHAPES,
    allocator,
    cacher,
    filled_frame_replay,
    filled_replay,
    mlp_allocator,
    plain_d3pg,
    plain_fields,
    same_shapes,
    sb3_ddpg,
    transitions,
    update_job,
)
from lightning_t2drl.system import load_scenario

ROWS = 6400
PLAIN = "plain eager D3PG, ReLU"
PEER = "Stable-Baselines3 DDPG, train"
BATCH_SIZES = (64, 256)
ACTIVATIONS: dict[str, tuple[str, type[nn.Module]]] = {"mish": ("Mish", nn.Mish), "relu": ("ReLU", nn.ReLU)}


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    flat = transitions(mlp_allocator("d3pg", scenario, "relu"), scenario, ROWS)
    sets = transitions(allocator("d3pg", scenario), scenario, ROWS)
    fields = plain_fields(flat)
    ours: dict[str, tuple[Callable[[], Any], Any]] = {
        f"D3PG, {label}": (functools.partial(mlp_allocator, "d3pg", scenario, name), flat)
        for name, (label, _) in ACTIVATIONS.items()
    }
    ours["DDPG, ReLU"] = (functools.partial(mlp_allocator, "ddpg", scenario, "relu"), flat)
    for name in ("d3pg", "ddpg"):  # as it is once the actor has begun to learn
        ours[f"allocator={name}"] = (functools.partial(allocator, name, scenario, "actor_warmup=0"), sets)
    rows: list[dict[str, Any]] = []
    notes = []
    for part, batch_size in enumerate(BATCH_SIZES):
        contenders: dict[str, Job] = {
            f"plain eager D3PG, {label}": plain_job(fields, batch_size, activation)
            for label, activation in ACTIVATIONS.values()
        }
        for name, (make, batches) in ours.items():
            contenders[name] = update_job(make(), filled_replay(batches), batch_size)
        for name in ("D3PG, ReLU", "allocator=d3pg") if budget.compiled else ():
            make, batches = ours[name]
            contenders[f"{name}, compiled"], note = compiled_job(make, batches, batch_size)
            notes.append(f"{name}, B = {batch_size}: {note}")
        model = sb3_ddpg(fields)
        if model is not None:
            contenders[PEER] = functools.partial(model.train, gradient_steps=1, batch_size=batch_size)
        timings = interleave(contenders, budget.seconds, budget.rounds, share_of(advance, part, 3))
        rows += [{"batch": batch_size} | row for row in table(timings, PLAIN)]
        if model is None:
            rows.append({"batch": batch_size, "contender": PEER, "ms": "not installed"})
    return Section(
        "One gradient update",
        f"{SHAPES}; sample, critic, actor and targets; 'times faster' is against '{PLAIN}' at the same batch size.",
        rows + cacher_rows(budget, share_of(advance, 2, 3)),
        [
            "The project's updates also watch for losses that are not finite and clip gradients, which the plain one "
            "and Stable-Baselines3 do not.",
            "allocator=d3pg and ddpg: one critic, set networks, discount 0 (no targets), as configured; the cachers "
            "on env=paper as configured.",
            *notes,
        ],
    )


def plain_job(fields: dict[str, torch.Tensor], batch_size: int, activation: type[nn.Module]) -> Job:
    plain, replay = plain_d3pg(activation), TensorReplay(fields)
    return lambda: plain.update(replay.sample(batch_size))


def compiled_job(make: Callable[[], Any], batches: Any, batch_size: int) -> tuple[Job, str]:
    """The update with compiled losses, and how long compiling takes without and with what an earlier process left."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        for _ in range(2):
            torch.compiler.reset()
            policy = make()
            policy.compile_update()
            job = update_job(policy, filled_replay(batches), batch_size)
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
    return job, f"compiling takes {seconds[0]:.0f} s at first, {seconds[1]:.0f} s with the cache on disk"


def cacher_rows(budget: Budget, advance: Advance) -> list[dict[str, Any]]:
    scenario = load_scenario("paper")
    contenders = {}
    for name in ("ddqn", "knapsack"):
        policy = cacher(name, scenario)
        contenders[f"cacher={name}"] = update_job(policy, filled_frame_replay(policy, scenario, 20), 128)
    timings = interleave(contenders, budget.seconds / 10, budget.rounds, advance)
    return [{"batch": 128} | row for row in table(timings)]
