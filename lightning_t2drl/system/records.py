"""TensorDicts of what is known to fit together."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict


def record(content: dict[str, Any], batch_size: tuple[int, ...], device: torch.device) -> TensorDict:
    """`TensorDict(content, batch_size, device=device)` without its checks, which take longer than two kernels.

    TorchRL and tensordict make theirs by the same constructor.

    Args:
        content: tensors and TensorDicts [*batch_size, ...], all on `device`.
    """
    return TensorDict._new_unsafe(content, batch_size=torch.Size(batch_size), device=device)
