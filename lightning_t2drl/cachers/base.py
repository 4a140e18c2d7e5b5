"""The long timescale: which models each cell holds for a frame."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.policy import Metrics, Optimise, Policy


class Cacher(Policy):
    """Decides once per frame. Subclasses implement `decide`; those that learn also `transition_fields` and `update`."""

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        """Models to cache for the coming frame.

        Args:
            observation: the cells' observation [N, B], see `EdgeAIGCEnv`; notably `popularity` [N, B, P] (what the
                cacher may see of the demand), `cache` [N, B, M] (what is held now), and `popularity_state`
                [N, B] (the truth, for the oracle only).
            explore: whether to try other than the best decision.

        Returns:
            bool [N, B, M], within the storage capacity.
        """
        raise NotImplementedError

    def start_episode(self, observation: TensorDict) -> None:
        """Called with the first observation of an episode; for cachers that remember."""

    def observe(self, observation: TensorDict) -> None:
        """Called with every slot's observation [N, B] before the slot is served; for cachers that watch requests."""

    def state(self, observation: TensorDict) -> Tensor:
        """What is stored of a frame's observation for learning: [N, B, S]."""
        raise NotImplementedError

    @property
    def state_width(self) -> int:
        raise NotImplementedError

    def transition_fields(self) -> dict[str, int]:
        """Names and widths of what the replay buffer keeps of a frame, in order."""
        width = self.state_width
        return {"state": width, "cache": self.scenario.models, "reward": 1, "next_state": width}

    def transition(self, state: Tensor, cache: Tensor, reward: Tensor, next_state: Tensor) -> dict[str, Tensor]:
        """The fields of a frame's transition, [N, B, width] each.

        Args:
            state, next_state: [N, B, S].
            cache: the decision as it was made, bool [N, B, M].
            reward: frame reward [N, B, 1].
        """
        return {"state": state, "cache": cache.float(), "reward": self.reward(reward, cache), "next_state": next_state}

    def reward(self, reward: Tensor, cache: Tensor) -> Tensor:
        """The reward to learn from, [N, B, 1]."""
        return reward

    def update(self, batch: dict[str, Tensor], optimise: Optimise) -> Metrics:
        """One gradient step on a batch of frames.

        Args:
            batch: `state`, `next_state` [b, S], `cache` [b, M], `reward` [b, 1].
        """
        raise NotImplementedError
