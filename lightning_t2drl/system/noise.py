"""Normal numbers from uniform ones, and what keeps arithmetic on small and large batches cheap."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def normal_pairs(uniform: Tensor, other: Tensor) -> Tensor:
    """Pairs of independent standard normal numbers [*, 2] from uniform ones [*] (Box and Muller).

    In memory the firsts of all pairs stand before all seconds, so that what is done to either runs over whole rows.
    """
    radius = uniform.neg().log1p_().mul_(number(-2)).sqrt_()
    angles = torch.add(_quarters(uniform.device, uniform.ndim), other, alpha=2 * math.pi)
    return angles.cos_().mul_(radius).movedim(0, -1)


@functools.lru_cache(maxsize=16)
def _quarters(device: torch.device, ndim: int) -> Tensor:
    """What makes a cosine a cosine and a sine, [2, 1, ...] before tensors of `ndim` dimensions."""
    return torch.tensor([0.0, -math.pi / 2], device=device).view(2, *[1] * ndim)


def in_planes(x: Tensor, y: Tensor) -> Tensor:
    """Pairs [*, 2] of numbers [*]; each half in one piece of memory."""
    return torch.stack((x, y)).movedim(0, -1)


@functools.lru_cache(maxsize=1024)
def number(value: float) -> Tensor:
    """A constant of the world as a tensor without dimensions, float32, which goes with tensors of any device.

    PyTorch makes such a tensor of every plain number in every operation, which in one world takes longer than the
    operation. Not for what is exported: a tracer would keep a tensor of its own here.
    """
    return torch.tensor(value, dtype=torch.float32)
