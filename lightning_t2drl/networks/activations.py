"""Activation functions by name, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_t2drl.errors import UserError

aten = torch.ops.aten

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"mish": F.mish, "silu": F.silu, "relu": torch.relu, "gelu": F.gelu}
# Each one's gradient at its input, from that at its output and the input.
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mish": aten.mish_backward,
    "silu": aten.silu_backward,
    "relu": lambda gradient, x: aten.threshold_backward(gradient, x, 0),
    "gelu": aten.gelu_backward,
}


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise UserError(f"activation: {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
