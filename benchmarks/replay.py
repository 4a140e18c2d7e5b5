"""(d) Replay: storing a slot of 64 worlds and sampling a batch of 256."""

from __future__ import annotations

import torch

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, Spread, interleave, table
from benchmarks.reference import TensorReplay
from benchmarks.report import Section
from benchmarks.subjects import (
    SHAPES,
    Minimise,
    filled_replay,
    mlp_allocator,
    plain_fields,
    same_shapes,
    sb3_ddpg,
    transitions,
)

WORLDS, BATCH_SIZE, ROWS = 64, 256, 6400
PLAIN, OURS = "a plain tensor per field", "Replay (TorchRL's, of named fields)"
PEER = "Stable-Baselines3's buffer, one row at a time"


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    policy = mlp_allocator("d3pg", scenario, "relu")
    batches = transitions(policy, scenario, ROWS, WORLDS)
    fields, rows_of_slot = plain_fields(batches), plain_fields(batches[:1])
    ours, learning, plain, minimise = (
        filled_replay(batches),
        filled_replay(batches),
        TensorReplay(fields),
        Minimise(policy),
    )

    def update() -> None:
        learning.extend(batches[0])
        policy.update(learning.sample(BATCH_SIZE), minimise)

    buffers: dict[str, Job] = {
        PLAIN: lambda: (plain.extend(rows_of_slot), plain.sample(BATCH_SIZE)),
        OURS: lambda: (ours.extend(batches[0]), ours.sample(BATCH_SIZE)),
    }
    model = sb3_ddpg(fields)
    if model is not None:
        buffer, names = model.replay_buffer, ("state", "next_state", "action", "reward")
        columns = list(zip(*(rows_of_slot[name].numpy() for name in names), torch.zeros(WORLDS).numpy(), strict=True))
        buffers[PEER] = lambda: ([buffer.add(*row, [{}]) for row in columns], buffer.sample(BATCH_SIZE))
    whole = f"{OURS} and the D3PG update (B = {BATCH_SIZE})"
    timings = interleave(buffers | {whole: update}, budget.seconds, budget.rounds, advance)
    rows = table({name: timings[name] for name in buffers}, PLAIN)
    for row in rows:
        row["% of that update"] = Spread.of(100 * timings[row["contender"]] / timings[whole])
    rows.append({"contender": whole, "ms": Spread.of(timings[whole] * 1e3)})
    return Section("Replay", f"extend({WORLDS} rows) and sample({BATCH_SIZE}). {SHAPES}; ReLU.", rows)
