"""Checks before anything is written that a run fits into memory and can learn at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.knapsack import KnapsackCacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import on_own_randomness
from lightning_t2drl.loop.two_timescale import LoopConfig, TwoTimescaleModule
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.system.scenario import Scenario

# Peak memory of played worlds, in multiples of their observation. Measured with 20,000 worlds and more it is 7 to 11,
# and policies need memory besides: a run that is refused would not have fitted.
WORLD_COPIES = 7
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Item:
    """Something a run holds in memory: `count` pieces of `size` bytes, as `key` says."""

    key: str
    count: int
    size: int

    @property
    def bytes(self) -> int:
        return self.count * self.size


def check_sizes(config: TrainConfig, module: TwoTimescaleModule) -> None:
    """Compare what the run needs with the memory there is.

    Raises:
        UserError: it does not fit; the line names the largest item's key, its bytes, and how many would fit.
    """
    room = available(config.trainer.accelerator)
    if room is None:
        return
    local = config.trainer.devices if isinstance(config.trainer.devices, int) else 1
    room //= local if config.trainer.accelerator == "cpu" else 1
    items = needed(config, module)
    total = sum(item.bytes for item in items)
    if total <= room:
        return
    largest = max(items, key=lambda item: item.bytes)
    fits = max(room - (total - largest.bytes), 0) // largest.size
    raise UserError(
        f"{largest.key}: {largest.count} need {_readable(largest.bytes)} of memory, of which {_readable(room)} are "
        f"there for a process; {fits} would fit"
    )


def needed(config: TrainConfig, module: TwoTimescaleModule) -> list[Item]:
    """The memory that grows with numbers of the config: replay rows, worlds, batches."""
    world, slot_row, frame_row = _measure(module)
    loop, evaluation = config.loop, config.evaluation
    episodes = {"evaluation.final_episodes": evaluation.final_episodes}
    if evaluation.every_n_frames:
        episodes["evaluation.episodes"] = evaluation.episodes
    key = max(episodes, key=lambda name: episodes[name])
    return [
        Item("env.num_envs", config.env.num_envs, world),
        Item(key, episodes[key], world),
        Item("loop.slot_capacity", loop.slot_capacity, slot_row),
        Item("loop.frame_capacity", loop.frame_capacity, frame_row),
        Item("loop.slot_batch_size", loop.slot_batch_size, slot_row),
        Item("loop.frame_batch_size", loop.frame_batch_size, frame_row),
    ]


def _measure(module: TwoTimescaleModule) -> tuple[int, int, int]:
    """Bytes of a played world, and of a slot's and a frame's row in the replay buffers (0 where none is kept)."""
    scenario, cacher, allocator = module.scenario, module.cacher, module.allocator
    env = EdgeAIGCEnv(scenario, 1, 0)
    with torch.no_grad(), on_own_randomness(cacher, 0):
        cells = env.observe()
        cacher.start_episode(cells)
        frame_state = cacher.state(cells) if cacher.learns else None
        cache = torch.zeros(1, scenario.cells, scenario.models, dtype=torch.bool)
        cells = env.latch(cache)
        following = env.play(torch.zeros(1, scenario.cells, scenario.users, 2))
        slot_row = frame_row = 0
        if allocator.learns:
            row = allocator.transition(allocator.state(cells), following, allocator.state(following))
            slot_row = row.bytes() // scenario.cells
        if frame_state is not None:
            row = cacher.transition(frame_state, cache, following["reward", "frame"], cacher.state(following))
            frame_row = row.bytes() // scenario.cells
    return following.bytes() * WORLD_COPIES, slot_row, frame_row


def available(accelerator: str) -> int | None:
    """Bytes that can be allocated now; None where nothing tells."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:  # what the container may have
        limit, used = (CGROUP / "memory.max").read_text().strip(), (CGROUP / "memory.current").read_text()
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1024
    return f"{size:,.1f} TiB"


def check_learning(loop: LoopConfig) -> None:
    """Refuse pairs of keys that contradict each other, such as a warm-up that the buffer cannot hold.

    Raises:
        UserError: two keys contradict each other; the line names both.
    """
    for timescale in ("slot", "frame"):
        capacity = getattr(loop, f"{timescale}_capacity")
        for what, why in (("warmup", "nothing would ever be learned"), ("batch_size", "rows would repeat")):
            value = getattr(loop, f"{timescale}_{what}")
            if value > capacity:
                raise UserError(
                    f"loop.{timescale}_{what}: {value} is more than loop.{timescale}_capacity={capacity} rows; {why}"
                )


def idle_learners(config: TrainConfig, scenario: Scenario, cacher: Cacher, allocator: Allocator) -> list[str]:
    """A line per network that could learn but will not in this run: its warm-up outlasts it, or it takes no steps.

    Also one for a cacher that pays for loading models and does not look at what they bring later.
    """
    loop = config.loop
    frames = config.frames * config.env.num_envs * scenario.cells
    rows = {"cacher": ("frame", frames), "allocator": ("slot", frames * scenario.slots_per_frame)}
    lines = []
    for owner, policy in (("cacher", cacher), ("allocator", allocator)):
        timescale, played = rows[owner]
        warmup, updates = getattr(loop, f"{timescale}_warmup"), getattr(loop, f"updates_per_{timescale}")
        if not policy.learns:
            continue
        if not updates:
            lines.append(f"the {owner} learns nothing: loop.updates_per_{timescale}=0")
        elif warmup > played:
            lines.append(
                f"the {owner} learns nothing: loop.{timescale}_warmup={warmup} rows, and this run plays {played}"
            )
        elif owner == "allocator":
            at_once = config.env.num_envs * scenario.cells
            made = updates * (played // at_once - max(-(-warmup // at_once), 1) + 1)
            waits = getattr(getattr(policy, "config", None), "actor_warmup", 0)
            if waits >= made:
                lines.append(
                    f"the actor learns nothing: allocator.actor_warmup={waits} updates, and this run makes {made}"
                )
    discount, additive = getattr(getattr(cacher, "config", None), "discount", None), isinstance(cacher, KnapsackCacher)
    if scenario.switch_cost and discount == 0 and not additive:  # what follows from a cache is no sum over models
        lines.append("the cacher weighs a load against one frame alone: env.switch_cost_per_gb with cacher.discount=0")
    return lines
