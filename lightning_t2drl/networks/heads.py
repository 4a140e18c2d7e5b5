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

    def __init__(self, scale: float, step_scale: float) -> None:
        """The scales are of no use here: the amender's scaling already makes shares relative."""

    def __call__(self, output: Tensor, hit: Tensor, attached: Tensor, full_share: Tensor) -> Tensor:
        return amend_allocation(output, hit, attached)


class CompetitiveHead:
    """Bandwidth by a softmax over the users; steps by a threshold that rises until the budget holds.

    The logits are `scale` times the output after subtracting its mean over the cell's users: a softmax does not
    see that mean, so without the subtraction nothing would hold it and tanh would saturate. The whole bandwidth is
    always given out.

    Steps below A1 buy nothing, so scaling everybody down alike wastes them, and the best use of a short budget
    serves some hits fully and others not at all. Each hit asks for A3 sigmoid(step_scale output), and where that is
    too much one threshold theta is taken off all logits: who wants it least drops out first. The scale is large, so
    that the sigmoid is saturated long before tanh is: otherwise all outputs drift to 1, where they tie.
    """

    HALVINGS = 14

    def __init__(self, scale: float, step_scale: float) -> None:
        self.scale = scale
        self.step_scale = step_scale

    def __call__(self, output: Tensor, hit: Tensor, attached: Tensor, full_share: Tensor) -> Tensor:
        logit = output[..., 0]
        count = attached.sum(-1, keepdim=True).clamp_min(1)
        logit = self.scale * (logit - (logit * attached).sum(-1, keepdim=True) / count)
        bandwidth = logit.masked_fill(~attached, -1e9).softmax(-1)
        steps = self._threshold(self.step_scale * output[..., 1], full_share * (hit & attached))
        return amend_allocation(raw_from_shares(torch.stack((bandwidth, steps), -1)), hit, attached)

    def _threshold(self, logit: Tensor, most: Tensor) -> Tensor:
        """Most * sigmoid(logit - theta) with the least theta >= 0 at which it sums to 1 or less; [*, U]."""
        with torch.no_grad():
            binding = (most * logit.sigmoid()).sum(-1, keepdim=True) > 1
            low = torch.zeros_like(logit[..., :1])
            high = torch.full_like(low, 2 * self.step_scale + 8.0)
            for _ in range(self.HALVINGS):
                middle = (low + high) / 2
                over = (most * (logit - middle).sigmoid()).sum(-1, keepdim=True) > 1
                low, high = torch.where(over, middle, low), torch.where(over, high, middle)
            theta = torch.where(binding, high, 0.0)
        share = (logit - theta).sigmoid()
        # One Newton step in theta, with gradient: it carries how theta moves with the logits.
        slope = (most * share * (1 - share)).sum(-1, keepdim=True).clamp_min(1e-4)
        theta = theta + torch.where(binding, ((most * share).sum(-1, keepdim=True) - 1) / slope.detach(), 0.0)
        return most * (logit - theta).sigmoid()


HEADS: dict[str, Callable[[float, float], Head]] = {"tanh": TanhHead, "competitive": CompetitiveHead}
