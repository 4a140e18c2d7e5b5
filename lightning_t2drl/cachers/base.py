"""The long timescale: which models each cell holds for a frame."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.policy import Policy


class Cacher(Policy):
    """Decides once per frame. Subclasses implement `decide`; one that learns also `state` and `update`."""

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

    @property
    def watches(self) -> bool:
        """Whether `observe` does anything."""
        return type(self).observe is not Cacher.observe

    def observe(self, observation: TensorDict) -> None:
        """Called with every slot's observation [N, B] before the slot is served; for cachers that watch requests."""

    def state(self, observation: TensorDict) -> TensorDict:
        """What is stored of a frame's observation [N, B] for learning."""
        raise NotImplementedError

    def transition(self, state: TensorDict, cache: Tensor, reward: Tensor, next_state: TensorDict) -> TensorDict:
        """What the replay buffer stores of a frame, [N, B].

        Args:
            state, next_state: at the frame's start and at its end, [N, B].
            cache: the decision as it was made, bool [N, B, M].
            reward: frame reward [N, B, 1].
        """
        fields = {"state": state, "cache": cache, "reward": self.reward(reward, cache), "next_state": next_state}
        return TensorDict(fields, batch_size=state.batch_size)

    def reward(self, reward: Tensor, cache: Tensor) -> Tensor:
        """The reward to learn from, [N, B, 1]."""
        return reward
