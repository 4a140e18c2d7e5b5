"""Who asks for what: the popularity chain and Zipf requests (docs/concepts/system.md)."""

from __future__ import annotations

import torch
from torch import Tensor


def stationary_distribution(transition: Tensor) -> Tensor:
    """The row vector pi with pi P = pi and sum(pi) = 1 of a Markov chain; shape [J] for a matrix [J, J].

    A chain with several closed classes has several; this is the one reached from the uniform distribution.
    """
    chain = transition.double()
    chain = chain / chain.sum(-1, keepdim=True)  # rounding errors of float32 grow with the power
    average = 0.5 * (chain + torch.eye(len(chain), dtype=torch.float64, device=chain.device))  # aperiodic, same pi
    return torch.linalg.matrix_power(average, 2**20).mean(0).to(transition.dtype)


def inverse_cdf(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Category whose cumulative probability first exceeds `uniform`.

    Args:
        cumulative: [*, C], rows rise to exactly 1, see `Scenario.request_cdf`.
        uniform: [*, D] in [0, 1).

    Returns:
        int64 [*, D], always a valid category of positive probability.
    """
    return torch.searchsorted(cumulative, uniform.contiguous(), right=True)
