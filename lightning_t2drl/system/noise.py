"""Normal numbers from uniform ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_pairs(uniform: Tensor, other: Tensor) -> Tensor:
    """Pairs of independent standard normal numbers [*, 2] from uniform ones [*] (Box and Muller)."""
    radius = torch.log1p(-uniform).mul_(-2).sqrt_()
    return torch.view_as_real(torch.polar(radius, other * (2 * math.pi)))
