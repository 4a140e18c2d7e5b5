"""Replay buffers: TorchRL's, over TensorDicts, with checkpoints no larger than what they hold."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, RandomSampler, ReplayBuffer

ROWS = ("_storage", "_storage")  # where a buffer's state keeps its rows


class Replay:
    """The last transitions, sampled uniformly by a generator of its own.

    Args:
        capacity: rows kept; the oldest give way.
        seed: of the sampling generator.
        device: where the rows live and are sampled.
    """

    def __init__(self, capacity: int, seed: int, device: torch.device | str) -> None:
        self.capacity = capacity
        device = torch.device(device)
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(capacity, device=device),
            sampler=RandomSampler(),
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
        return _each_row_tensor(self._buffer.state_dict(), lambda rows: rows[: len(self)].clone())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def roomy(rows: torch.Tensor) -> torch.Tensor:
            room = rows.new_zeros((self.capacity, *rows.shape[1:]))
            room[: len(rows)] = rows
            return room

        self._buffer.load_state_dict(_each_row_tensor(state, roomy))


def _each_row_tensor(state: dict[str, Any], change: Any) -> dict[str, Any]:
    """The buffer's state with `change` applied to each tensor of rows."""
    storage = state["_storage"]
    rows = storage["_storage"]
    changed = {key: change(value) if isinstance(value, torch.Tensor) else value for key, value in rows.items()}
    return {**state, "_storage": {**storage, "_storage": changed}}
