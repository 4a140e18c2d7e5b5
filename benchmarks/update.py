"""(b) One gradient update: sample, critic, actor, targets."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, interleave, share_of, table
from benchmarks.reference import TensorReplay
from benchmarks.report import Section
from benchmarks.subjects import (
    SHAPES,
    Minimise,
    allocator,
    cacher,
    compiled_job,
    filled_frame_replay,
    filled_replay,
    mlp_shape,
    plain_d3pg,
    plain_fields,
    same_shapes,
    sb3_ddpg,
    transitions,
)
from lightning_t2drl.accel.kernels import fast_products
from lightning_t2drl.loop.replay import PackedReplay
from lightning_t2drl.policy import Policy
from lightning_t2drl.system import load_scenario

ROWS = 6400
PLAIN = "plain eager D3PG, Mish"
SAME_KERNELS = ", the project's matrix kernels"
PEER = "Stable-Baselines3 DDPG, train"
BATCH_SIZES = (64, 256)
ACTIVATIONS = {"mish": "Mish", "silu": "SiLU", "relu": "ReLU"}


def update_job(policy: Policy, replay: PackedReplay, batch_size: int) -> Job:
    """The project's update as its training loop runs it."""
    minimise = Minimise(policy)
    return lambda: policy.update(replay.sample(batch_size), minimise)  # type: ignore[operator]


def _plain_job(fields: dict[str, Tensor], batch_size: int, activation: type[nn.Module] = nn.Mish) -> Job:
    plain, replay = plain_d3pg(activation=activation), TensorReplay(fields)
    return lambda: plain.update(replay.sample(batch_size))


class _Products(TorchDispatchMode):
    """Notes all matrix products that are computed inside, with their factors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.calls.append((func, tuple(arg.detach() for arg in args)))
        return func(*args, **(kwargs or {}))


def products_of(job: Job) -> Job:
    """Nothing but the matrix products of one call of `job`, one library call each."""
    job()  # the first call looks into what the processor can do
    with _Products() as noted:
        job()

    def products() -> None:
        for multiply, factors in noted.calls:
            multiply(*factors)

    return products


def _seconds_of_first(job: Job) -> float:
    """What compiling takes where nothing has been compiled before."""
    with fresh_cache():
        start = time.perf_counter()
        job()
        return time.perf_counter() - start


def _with_same_kernels(job: Job, batch_size: int) -> Job:
    """A peer's update with the matrix kernels that the project switches to for large batches."""

    def with_kernels() -> object:
        with fast_products(batch_size):
            return job()

    return with_kernels


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    flat = transitions(allocator("ddpg", scenario), scenario, ROWS)
    sets = transitions(allocator("d3pg_set", scenario), scenario, ROWS)
    fields = plain_fields(flat, scenario.users)
    rows = []
    compiling: dict[str, list[float]] = {"MLPs": [], "set networks": []}
    for part, batch_size in enumerate(BATCH_SIZES):
        contenders: dict[str, Job] = {PLAIN: _plain_job(fields, batch_size)}
        # Everyone has networks of its own: who comes right after itself would find them in the processor's cache.
        again = _plain_job(fields, batch_size)
        contenders[f"{PLAIN}{SAME_KERNELS}"] = _with_same_kernels(again, batch_size)
        both = _with_same_kernels(_plain_job(fields, batch_size, nn.SiLU), batch_size)
        contenders[f"plain eager D3PG, SiLU{SAME_KERNELS}"] = both
        for activation, label in ACTIVATIONS.items():
            policy = allocator("d3pg", scenario, *mlp_shape(activation))
            contenders[f"D3PG, {label}"] = update_job(policy, filled_replay(policy, flat), batch_size)
        for activation in budget.compiled:
            policy = allocator("d3pg", scenario, *mlp_shape(activation))
            job = compiled_job(policy, filled_replay(policy, flat), batch_size)
            contenders[f"D3PG, {ACTIVATIONS[activation]}, compiled"] = job
            compiling["MLPs"].append(_seconds_of_first(job))
        policy = allocator("d3pg", scenario, *mlp_shape("relu"))
        products = products_of(update_job(policy, filled_replay(policy, flat), batch_size))
        contenders["the matrix products of D3PG alone"] = products
        contenders[f"the matrix products of D3PG alone{SAME_KERNELS}"] = _with_same_kernels(products, batch_size)
        if budget.compiled:
            policy = allocator("d3pg_set", scenario)
            job = compiled_job(policy, filled_replay(policy, sets), batch_size)
            contenders["allocator=d3pg_set, compiled"] = job
            compiling["set networks"].append(_seconds_of_first(job))
        policy = allocator("ddpg", scenario, *mlp_shape("relu"))
        contenders["DDPG, ReLU"] = update_job(policy, filled_replay(policy, flat), batch_size)
        for name in ("d3pg_set", "ddpg_set"):
            policy = allocator(name, scenario)
            contenders[f"allocator={name}"] = update_job(policy, filled_replay(policy, sets), batch_size)
        peers = [sb3_ddpg(fields), sb3_ddpg(fields)]
        trains = [functools.partial(m.train, gradient_steps=1, batch_size=batch_size) for m in peers if m is not None]
        if trains:
            contenders[PEER] = trains[0]
            contenders[f"{PEER}{SAME_KERNELS}"] = _with_same_kernels(trains[1], batch_size)
        timings = interleave(contenders, budget.update, budget.rounds, share_of(advance, part, 3))
        rows += [{"batch": batch_size} | row for row in table(timings, PLAIN)]
        if not trains:
            rows.append({"batch": batch_size, "contender": PEER, "ms": "not installed"})
    rows += _cacher_rows(budget, share_of(advance, 2, 3))
    return Section(
        "One gradient update",
        f"{SHAPES}; sample, critic, actor and targets; 'times faster' is against '{PLAIN}' at the same batch size.",
        rows,
        [
            "For large batches the project multiplies matrices by other kernels than PyTorch's default (oneDNN instead "
            "of MKL). Rows named 'the project's matrix kernels' switch a peer to the same: what is left between one "
            "of these and the project with the same activation is what the code itself saves.",
            "The matrix products alone are those of one eager update of D3PG with ReLU, on its own tensors, by one "
            "library call each. A compiled update can be faster: it computes the narrow ones in loops of its own.",
            "The project's updates also check that losses are finite and clip gradients, which the plain one and "
            "Stable-Baselines3 do not.",
            "allocator=d3pg_set and ddpg_set: two critics, set networks, discount 0 (no targets), as configured; the "
            "cachers on env=paper as configured.",
            *[
                f"Compiling the update of {networks} took {min(seconds):.0f} to {max(seconds):.0f} s."
                for networks, seconds in compiling.items()
                if seconds
            ],
        ],
    )


def _cacher_rows(budget: Budget, advance: Advance) -> list[dict]:
    scenario = load_scenario("paper")
    contenders = {}
    for name in ("ddqn", "knapsack"):
        policy = cacher(name, scenario)
        contenders[f"cacher={name}"] = update_job(policy, filled_frame_replay(policy, scenario, 20), 128)
    timings = interleave(contenders, budget.update / 10, budget.rounds, advance)
    return [{"batch": 128} | row for row in table(timings)]
