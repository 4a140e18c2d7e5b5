"""The world as Stable-Baselines3 takes many of them at once: one batch, not one environment after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from lightning_t2drl.envs.views import View, part


class EdgeAIGCVecEnv(VecEnv):
    """N worlds as one environment of Stable-Baselines3; arguments, observations and rewards are those of `views.View`.

    All worlds end their episodes together. As Stable-Baselines3 has it, the step that ends them returns the first
    observations of the next episodes, and each `info` the last one as `terminal_observation`. A seed is one for all.

    Args:
        num_envs: N.
        **arguments: of `views.View`.
    """

    render_mode = None

    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        self.view = View(num_envs=num_envs, **arguments)
        super().__init__(num_envs, self.view.observation_space(), self.view.action_space())

    def reset(self) -> Any:
        seed = self._seeds[0]
        self._reset_seeds()
        return self.view.reset(seed)

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        seen, reward, metrics = self.view.step(self._actions)
        over = self.view.over
        values = {name: value.tolist() for name, value in metrics.items()}
        infos: list[dict[str, Any]] = [
            {name: value[world] for name, value in values.items()} | {"TimeLimit.truncated": over}
            for world in range(self.num_envs)
        ]
        if over:
            for world, info in enumerate(infos):
                info["terminal_observation"] = part(seen, world)
            seen = self.view.reset()
        return seen, reward.mean(-1).numpy(), np.full(self.num_envs, over), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **keys: Any) -> list[Any]:
        return [getattr(self, method_name)(*args, **keys)] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self._count(indices)

    def _count(self, indices: int | Sequence[int] | None) -> int:
        return len(list(self._get_indices(indices)))
