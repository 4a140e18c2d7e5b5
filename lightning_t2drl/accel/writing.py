"""Replay rows written as slices, so that a GPU is not waited for.

TorchRL's writer makes an index of the rows. Where they name no device it is on the CPU, and each of the six fields of a
slot waits to copy it to a GPU; else the GPU is asked for its last entry (`tests/test_cuda.py` counts such waits). On a
CPU no whole run feels it. It relies on the writer's own `_cursor`, `_write_count` and `_storage`.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import RoundRobinWriter


class SliceWriter(RoundRobinWriter):
    """TorchRL's round robin; rows that lie side by side are one slice."""

    def extend(self, data: TensorDict) -> Tensor:
        start: int = self._cursor  # type: ignore[has-type]
        count, size = len(data), self._storage.max_size
        if start + count > size:
            return super().extend(data)
        self._cursor = (start + count) % size
        self._write_count += count
        self._storage.set(slice(start, start + count), data)
        return torch.arange(start, start + count)
