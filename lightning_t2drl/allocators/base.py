"""The short timescale: how each cell splits bandwidth and denoising steps among its users in a slot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.policy import Policy


class Allocator(Policy):
    """Decides every slot. One that follows a rule implements `decide`; one that learns `state`, `act` and `update`."""

    @property
    def foresees(self) -> bool:
        """Whether an evaluation may ask for many slots of a frame at once, see `decide_slots`."""
        return False

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        """Raw allocation for the slot; the amender makes it feasible.

        Args:
            observation: the cells' observation [N, B], see `EdgeAIGCEnv`: `request`, `input_bits`, `output_bits`,
                `gain`, `attached` [N, B, U] and `cache` [N, B, M] as it holds in this slot.
            explore: whether to add exploration.

        Returns:
            float32 [N, B, U, 2] in [-1, 1]: a value a asks for the share (a + 1) / 2 of bandwidth and of steps.
        """
        return self.act(self.state(observation), explore)

    def decide_slots(self, observations: TensorDict) -> Iterator[Tensor]:
        """Raw allocations for slots that follow each other, one after the other, from observations [S, N, B].

        No allocation changes what comes after it, so a rule without memory and chance may work them out together.
        """
        yield from map(self.decide, observations.unbind(0))

    def state(self, observation: TensorDict) -> TensorDict:
        """What `act` needs of an observation [N, B], and what the replay buffer stores of it."""
        return observation

    def act(self, state: TensorDict, explore: bool = False) -> Tensor:
        """Raw allocation [*, U, 2] for states [*]."""
        return self.decide(state, explore)

    def transition(self, state: TensorDict, following: TensorDict, next_state: TensorDict) -> TensorDict:
        """What the replay buffer stores of a slot, [N, B].

        Args:
            state, next_state: of the slot and its successor, [N, B].
            following: what `EdgeAIGCEnv.play` returned for the slot, with `served` and the executed `shares` in it.
        """
        raise NotImplementedError

    def diagnosis(self, cells: TensorDict, generator: torch.Generator) -> dict[str, float]:
        """What can be measured of this allocator in a slot [N, B], by the names of `loop.diagnosis`."""
        return {}
