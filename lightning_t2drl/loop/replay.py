"""Replay buffers: TorchRL's, over TensorDicts; checkpoints hold only the rows that are filled."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, RandomSampler, ReplayBuffer

from lightning_t2drl.accel.writing import SliceWriter


class Replay:
    """The last transitions, sampled uniformly by a generator of its own.

    Args:
        capacity: rows kept; the oldest are overwritten.
        seed: of the sampling generator.
        device: where the rows live and are sampled.
    """

    def __init__(self, capacity: int, seed: int, device: torch.device | str) -> None:
        self.capacity = capacity
        device = torch.device(device)
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(capacity, device=device),
            sampler=RandomSampler(),
            writer=SliceWriter(),
            generator=torch.Generator(device=device).manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, transition: TensorDict) -> None:
        """Add transitions [*]; all leading dims become rows."""
        self._buffer.extend(transition.reshape(-1))

    def sample(self, batch_size: int) -> TensorDict:
        """A uniform batch [batch_size]."""
        return self._buffer.sample(batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Rows filled so far, write position and generator: plain tensors and values."""
        state = self._buffer.state_dict()
        rows = {name: value[: len(self)].clone() for name, value in state["_storage"]["_storage"].items()}
        return state | {"_storage": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; this buffer must be new."""
        rows = state["_storage"]
        if rows:
            count = len(next(iter(rows.values())))
            self._buffer.extend(TensorDict(rows, batch_size=[count]).unflatten_keys("."))
        self._buffer.load_state_dict(state | {"_storage": self._buffer.state_dict()["_storage"]})
