"""What happens to gradients between the backward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def average_gradients(parameters: Sequence[nn.Parameter], world_size: int) -> None:
    """Replace the gradients of `parameters` by their mean over all ranks, in one flat all-reduce."""
    if world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale the gradients of `parameters` down together so that their norm is at most `most`; 0 for no limit."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not most or not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = most / (norm + 1e-6)
    if factor.is_cuda:  # looking at it would wait for the device
        torch._foreach_mul_(gradients, factor.clamp_max(1.0))
    elif factor.item() < 1:
        torch._foreach_mul_(gradients, factor.item())
