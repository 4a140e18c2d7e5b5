"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"mish": F.mish, "silu": F.silu, "relu": torch.relu, "gelu": F.gelu}
