"""Makes any decision feasible (docs/concepts/system.md). Every decision passes through here."""

from __future__ import annotations

import torch
from torch import Tensor


def amend_allocation(raw: Tensor, hit: Tensor, attached: Tensor) -> Tensor:
    """Map any raw action to feasible shares of bandwidth and denoising steps.

    A raw value a asks for the share (a + 1) / 2. A miss gets no steps, and a user attached to another cell gets neither
    steps nor bandwidth. If the others' shares sum to more than 1, all are scaled down by the same factor. A feasible
    allocation passes unchanged, so every feasible point can be reached.

    Args:
        raw: [*, U, 2] (bandwidth, steps); values beyond [-1, 1] are clamped.
        hit, attached: bool [*, U].

    Returns:
        Shares (b, xi) [*, U, 2], each column >= 0 with a sum <= 1. Differentiable inside the clamp.
    """
    allowed = torch.stack((attached, attached & hit))  # bandwidth and steps, each in one piece of memory
    ask = raw.movedim(-1, 0).contiguous().clamp(-1.0, 1.0).add_(1).mul_(0.5) * allowed
    return (ask / ask.sum(-1, keepdim=True).clamp_min(1.0)).movedim(0, -1)


def raw_from_shares(shares: Tensor) -> Tensor:
    """The raw action that asks for exactly these shares."""
    return 2 * shares - 1
