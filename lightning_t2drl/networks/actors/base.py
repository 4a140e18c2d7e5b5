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


class Actor(nn.Module):
    """A network made into a policy: an output [*, U, 2] from a state and normal noise.

    An actor that can also be trained by adding noise to actions has `denoising_loss(state, clean, noise)`: what its
    network is wrong by on actions `clean` [*, U, 2] at all `levels` of noise, [*, U] from noise [levels, *, U, 2].
    """

    steps = 0  # evaluations of the network
    draws = 0  # tensors of standard normal noise [*, U, 2] that a decision takes
    levels = 0  # of noise that the network knows
    trunk: nn.Module

    def forward(self, state: State, noise: Tensor) -> Tensor:
        """The output [*, U, 2], before `squash`, for states [*] and noise [draws, *, U, 2]."""
        raise NotImplementedError

    def squash(self, x: Tensor) -> Tensor:
        """An output as an action in [-1, 1]."""
        return x

    def penalty(self, x: Tensor) -> Tensor | None:
        """The term added to the actor's loss for its output [*, U, 2]; None for none."""
        return None


MakeTrunk = Callable[[int], nn.Module]  # the configured network, for a chain of so many steps


def flat(state: State) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """A state [*, ...] as [n, ...] by field, and the shape * of its batch."""
    batch = tuple(state["hit"].shape[:-1])
    return {key: value.reshape(-1, *value.shape[len(batch) :]) for key, value in state.items()}, batch
