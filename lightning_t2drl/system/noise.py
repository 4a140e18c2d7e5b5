"""Normal numbers from uniform ones, and what keeps arithmetic on small and large batches cheap."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor


def normal_pairs(uniform: Tensor, other: Tensor) -> Tensor:
    """Pairs of independent standard normal numbers [*, 2] from uniform ones [*] (Box and Muller).

    In memory the firsts of all pairs stand before all seconds, so that what is done to either runs over whole rows.
    """
    radius = uniform.neg().log1p_().mul_(number(-2)).sqrt_()
    angles = torch.add(_quarters(uniform.device).view(2, *[1] * uniform.ndim), other, alpha=2 * math.pi)
    return angles.cos_().mul_(radius).movedim(0, -1)


def in_planes(x: Tensor, y: Tensor) -> Tensor:
    """Pairs [*, 2] of numbers [*]; each half in one piece of memory."""
    return torch.stack((x, y)).movedim(0, -1)


def number(value: float) -> Any:
    """A constant of the world as a tensor without dimensions, float32, which goes with tensors of any device.

    PyTorch makes such a tensor of every plain number in every operation, which in one world takes longer than the
    operation. A compiler is given the number itself.
    """
    return value if torch.compiler.is_compiling() else _number(value)


@functools.lru_cache(maxsize=1024)
def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _quarters(device: torch.device) -> Tensor:
    """What makes a cosine a cosine and a sine, [2]."""
    return _make_quarters(device) if torch.compiler.is_compiling() else _kept_quarters(device)


def _make_quarters(device: torch.device) -> Tensor:
    return torch.tensor([0.0, -math.pi / 2], device=device)


_kept_quarters = functools.lru_cache(maxsize=16)(_make_quarters)
