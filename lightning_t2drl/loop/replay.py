"""Replay buffers: TorchRL's, over one packed tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, ReplayBuffer


class PackedStorage(LazyTensorStorage):
    """A packed tensor whose rows are copied whole; indexing it would copy element by element."""

    def get(self, index: Any) -> Any:
        """Rows [b, width] at `index` [b]."""
        return self._storage.index_select(0, index) if isinstance(index, Tensor) else super().get(index)


class PackedReplay:
    """A TorchRL replay buffer whose rows are the concatenated fields of a transition.

    One tensor [capacity, sum of widths] makes an insertion one copy and a sample one gather, whatever the number of
    fields. Sampling is uniform, from the buffer's own generator.

    Args:
        fields: names and widths, in order.
        capacity: rows kept; the oldest give way.
        seed: of the sampling generator.
        device: where the rows live and are sampled.
    """

    def __init__(self, fields: dict[str, int], capacity: int, seed: int, device: torch.device | str) -> None:
        self.fields = fields
        self.capacity = capacity
        self.device = torch.device(device)
        self._buffer = ReplayBuffer(
            storage=PackedStorage(capacity, device=self.device),
            sampler=RandomSampler(),
            generator=torch.Generator(device=self.device).manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, transition: dict[str, Tensor]) -> None:
        """Add transitions: per field [*, width] in float32, all leading dims flattened to rows."""
        self._buffer.extend(torch.cat([transition[name].flatten(0, -2) for name in self.fields], -1))

    def sample(self, batch_size: int) -> dict[str, Tensor]:
        """A uniform batch: views [b, width] by field."""
        rows = self._buffer.sample(batch_size)
        return dict(zip(self.fields, rows.split(list(self.fields.values()), -1), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Rows filled so far, write position and generator: plain tensors and values, no larger than the content."""
        state = self._buffer.state_dict()
        if len(self):
            state["_storage"]["_storage"] = state["_storage"]["_storage"][: len(self)].clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["_storage"]["_len"]:
            rows = state["_storage"]["_storage"]
            room = rows.new_empty((self.capacity, sum(self.fields.values())))
            room[: len(rows)] = rows
            state = {**state, "_storage": {**state["_storage"], "_storage": room}}
        self._buffer.load_state_dict(state)
