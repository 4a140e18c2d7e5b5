"""What all actors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_t2drl.networks.features import State


class Trunk(Protocol):
    """A denoiser or plain actor network: the swap-in point for an architecture of one's own.

    The class also has a dataclass `Config`, a `Features` layout that the critic shares, and is made by
    `Trunk(scenario, steps, config)`; `steps` is the length of the actor's chain, 0 where there is none.
    """

    def context(self, state: State) -> Any:
        """What states [n, ...] contribute, computed once per chain."""

    def forward(self, context: Any, x: Tensor | None, step: int) -> Tensor:
        """Output [n, U, 2], not squashed, for the noisy action `x` [n, U, 2] at `step` (from 0); `x` is None without
        a chain.
        """


MakeTrunk = Callable[[int], nn.Module]  # the configured network, for a chain of so many steps


def flat(state: State) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """A state [*, ...] as [n, ...] by field, and the shape * of its batch."""
    batch = tuple(state["hit"].shape[:-1])
    return {key: value.reshape(-1, *value.shape[len(batch) :]) for key, value in state.items()}, batch
