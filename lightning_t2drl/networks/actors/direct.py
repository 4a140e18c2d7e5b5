"""DDPG's actor: the network, evaluated once, without a chain."""

from __future__ import annotations

from torch import Tensor

from lightning_t2drl.networks.actors.base import Actor, MakeTrunk, flat
from lightning_t2drl.networks.features import State


class DirectActor(Actor):
    """A state's action in one evaluation."""

    def __init__(self, make_trunk: MakeTrunk) -> None:
        super().__init__()
        self.trunk = make_trunk(0)

    def forward(self, state: State, noise: Tensor | None = None) -> Tensor:
        """The action for states [*]: [*, U, 2] in [-1, 1]; `noise` is not used."""
        rows, batch = flat(state)
        return self.trunk(self.trunk.context(rows), None, 0).tanh().unflatten(0, batch)  # type: ignore[operator]
