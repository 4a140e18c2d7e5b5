"""From an actor's output in [-1, 1] to a raw allocation: where the geometry of the action is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lightning_t2drl.system import amend_allocation, raw_from_shares


class Head(Protocol):
    """From an actor's output to feasible shares."""

    def __call__(self, output: Tensor, hit: Tensor, attached: Tensor, full_share: Tensor) -> Tensor:
        """Shares [*, U, 2] from output [*, U, 2], flags [*, U] and `full_share` [*, U], A3 / L of each user's model."""


class TanhHead:
    """The published head: the output is the raw action; the amender scales what exceeds the budget."""

    def __init__(self, scale: float) -> None:
        """`scale` is of no use here: the amender's scaling already makes shares relative."""

    def __call__(self, output: Tensor, hit: Tensor, attached: Tensor, full_share: Tensor) -> Tensor:
        return amend_allocation(output, hit, attached)


class SoftmaxHead:
    """Bandwidth by a softmax over the users, steps as a demand in units of what full quality takes.

    The logits are `scale` times the output after subtracting its mean over the cell's users: a softmax does not
    see that mean, so without the subtraction nothing would hold it and tanh would saturate. The whole bandwidth is
    always given out; steps beyond A3 are never asked for.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, output: Tensor, hit: Tensor, attached: Tensor, full_share: Tensor) -> Tensor:
        logit = output[..., 0]
        count = attached.sum(-1, keepdim=True).clamp_min(1)
        logit = self.scale * (logit - (logit * attached).sum(-1, keepdim=True) / count)
        bandwidth = logit.masked_fill(~attached, -1e9).softmax(-1)
        steps = (output[..., 1] + 1) * 0.5 * full_share
        return amend_allocation(raw_from_shares(torch.stack((bandwidth, steps), -1)), hit, attached)


HEADS: dict[str, Callable[[float], Head]] = {"tanh": TanhHead, "softmax": SoftmaxHead}
