"""The short timescale: how each cell splits bandwidth and denoising steps among its users in a slot."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.policy import Metrics, Optimise, Policy


class Allocator(Policy):
    """Decides every slot. Subclasses implement `decide`; those that learn implement `state`, `act` and `update`."""

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

    def state(self, observation: TensorDict) -> Tensor:
        """The observation as the networks see it and the replay buffer stores it: [N, B, S]."""
        raise NotImplementedError

    def act(self, state: Tensor, explore: bool = False) -> Tensor:
        """Raw allocation [*, U, 2] for states [*, S]."""
        raise NotImplementedError

    def transition_fields(self) -> dict[str, int]:
        """Names and widths of what the replay buffer keeps of a slot, in order."""
        raise NotImplementedError

    def transition(self, state: Tensor, shares: Tensor, served: TensorDict, next_state: Tensor) -> dict[str, Tensor]:
        """The fields of a slot's transition, [N, B, width] each.

        Args:
            state, next_state: [N, B, S].
            shares: the amended allocation that was executed [N, B, U, 2].
            served: what `serve` returned for the slot [N, B].
        """
        raise NotImplementedError

    def update(self, batch: dict[str, Tensor], optimise: Optimise) -> Metrics:
        """One round of gradient steps on a batch of transitions [b, width] by field."""
        raise NotImplementedError
