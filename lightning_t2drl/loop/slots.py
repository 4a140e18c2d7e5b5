"""The two timescales of one frame, as training and evaluation both play them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expect(value: Any, shape: Sequence[int], kinds: Sequence[torch.dtype], what: str) -> None:
    """Refuse what a policy, which may be of the user's making, returned in another shape or kind.

    Raises:
        UserError: the line says what it is and what it must be.
    """
    if isinstance(value, Tensor):
        if value.shape == torch.Size(shape) and value.dtype in kinds:
            return
        found = f"{list(value.shape)} of {value.dtype}"
    else:
        found = type(value).__name__
    raise UserError(f"{what} returned {found}; needed is a tensor {list(shape)} of {kinds[0]}".replace("torch.", ""))


class Slot(NamedTuple):
    """A slot that has been served, each part [N, B]."""

    cache: Tensor  # as the cacher asked for it at the frame's start, bool [N, B, M]
    raw: Tensor  # as the allocator asked, [N, B, U, 2]
    cells: TensorDict  # observation at the slot's start
    state: TensorDict  # the allocator's state of it
    following: TensorDict  # observation at the next slot's start, with `served` and `reward` of this one
    next_state: TensorDict


def frame(
    env: EdgeAIGCEnv,
    cacher: Cacher,
    allocator: Allocator,
    explore: bool = False,
    networks: Callable[[], AbstractContextManager[object]] = nullcontext,
    ahead: Callable[[], Iterator[Tensor]] | None = None,
) -> Iterator[Slot]:
    """Play one frame: the cacher decides, then the allocator slot by slot.

    Args:
        env: the worlds, all at the start of a frame.
        explore: whether both explore.
        networks: a context for what networks compute, such as a precision.
        ahead: called once the caches are set, what the allocator decides in each of the frame's slots; None: it is
            asked slot by slot.

    Yields:
        Every slot after it was served. The next is not drawn before the caller asks for it.
    """
    cells = env.observe()
    with networks():
        cache = cacher.decide(cells, explore)
    expect(cache, cells["cache"].shape, (torch.bool,), f"cacher: {type(cacher).__name__}.decide")
    cells = env.latch(cache)
    state = allocator.state(cells)
    decided = None if ahead is None else ahead()
    for _ in range(env.scenario.slots_per_frame):
        cacher.observe(cells)
        with networks():
            raw = allocator.act(state, explore) if decided is None else next(decided)
        expect(raw, (*cells["request"].shape, 2), FLOATS, f"allocator: {type(allocator).__name__}.act")
        following = env.play(raw)
        next_state = allocator.state(following)
        yield Slot(cache, raw, cells, state, following, next_state)
        cells, state = following, next_state
