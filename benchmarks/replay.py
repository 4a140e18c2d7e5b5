"""(d) Replay: storing a slot of 64 worlds and sampling a batch of 256."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Spread, interleave, table
from benchmarks.report import Section
from benchmarks.subjects import SHAPES, Minimise, allocator, filled_replay, mlp_shape, same_shapes, transitions
from lightning_t2drl.allocators.base import Allocator

WORLDS, BATCH_SIZE, ROWS = 64, 256, 6400
TORCHRL = "TorchRL TensorDictReplayBuffer, LazyTensorStorage"
PACKED = "PackedReplay"


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    policy = allocator("d3pg", scenario, *mlp_shape("mish"))
    batches = transitions(policy, scenario, ROWS, WORLDS)
    packed, learning = filled_replay(policy, batches), filled_replay(policy, batches)
    tensordicts = [TensorDict({k: v.flatten(0, -2) for k, v in b.items()}, batch_size=[WORLDS]) for b in batches]
    theirs = TensorDictReplayBuffer(
        storage=LazyTensorStorage(ROWS), batch_size=BATCH_SIZE, generator=torch.Generator().manual_seed(0)
    )
    for rows in tensordicts:
        theirs.extend(rows)
    minimise = Minimise(policy)

    def torchrl() -> None:
        theirs.extend(tensordicts[0])
        theirs.sample()

    def ours() -> None:
        packed.extend(batches[0])
        packed.sample(BATCH_SIZE)

    def whole_update() -> None:
        learning.extend(batches[0])
        policy.update(learning.sample(BATCH_SIZE), minimise)

    update = f"PackedReplay and the D3PG update (B = {BATCH_SIZE})"
    timings = interleave({TORCHRL: torchrl, PACKED: ours, update: whole_update}, budget.replay, budget.rounds, advance)
    rows = table({name: timings[name] for name in (TORCHRL, PACKED)}, TORCHRL)
    rows.append({"contender": update, "ms": Spread.of(timings[update] * 1e3)})
    for row in rows[:2]:
        row["% of that update"] = Spread.of(100 * timings[row["contender"]] / timings[update])
    return Section(
        "Replay",
        f"extend({WORLDS} rows) and sample({BATCH_SIZE}); {packed_width(policy)} floats per row. {SHAPES}; Mish.",
        rows,
    )


def packed_width(policy: Allocator) -> int:
    return sum(policy.transition_fields().values())
