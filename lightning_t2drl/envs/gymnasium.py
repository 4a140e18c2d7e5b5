"""Gymnasium views of the world, registered when this module is imported.

`EdgeAIGC-v0` takes the scenario as an argument; each shipped scenario also has an id of its own, such as
`EdgeAIGC-paper-v0`. `gymnasium.make_vec` makes one batch of worlds.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_t2drl.envs.views import Array, View, part
from lightning_t2drl.errors import UserError
from lightning_t2drl.system.caching import all_caches
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

RENDER_MODES = ("rgb_array", "human")
MAX_MODELS = 12  # of `CacheIndex`, which numbers all caches that fit
NAME = "EdgeAIGC"


class EdgeAIGCGym(gymnasium.Env[Any, Any]):
    """One world as a Gymnasium environment; arguments, observations and rewards are those of `views.View`.

    Shapes are those of one cell; where the scenario has several, each array has a leading axis for them, and the reward
    is the mean over cells. Cells as agents of their own are in `lightning_t2drl.envs.pettingzoo`.

    An episode is truncated after its last frame and never terminated. `info` holds the metrics of `slot_metrics` of
    the slot, or of the frame where a step is a frame: `utility`, `hit_ratio`, `violation_ratio`, `delay` (s), ...

    Args:
        render_mode: `rgb_array` (`render()` returns the picture of the last slot), `human` (a window shows it after
            each step) or None.
        **arguments: of `views.View`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise UserError(f"render_mode: {render_mode!r} is none of {', '.join(RENDER_MODES)}")
        self.render_mode = render_mode
        if arguments.setdefault("num_envs", 1) != 1:
            raise UserError("num_envs: this is one environment; gymnasium.make_vec makes several")
        self.view = View(**arguments)
        self.observation_space = self.view.observation_space()
        self.action_space = self.view.action_space()
        self._window: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        fresh = seed is not None or self._np_random is None
        super().reset(seed=seed)
        observation = self.view.reset(int(self.np_random.integers(2**31)) if fresh else None)
        self._show()
        return part(observation, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, metrics = self.view.step(action)
        self._show()
        info = {name: value.item() for name, value in metrics.items()}
        return part(observation, 0), reward.mean().item(), False, self.view.over, info

    def render(self) -> Any:
        if self.render_mode == "rgb_array" and self.view.shown:
            return self.view.picture()
        return None

    def close(self) -> None:
        if self._window is not None:
            import matplotlib.pyplot as plt

            plt.close(self._window.figure)
            self._window = None

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        import matplotlib.pyplot as plt

        picture = self.view.picture()
        if self._window is None:
            figure = plt.figure(NAME, figsize=(9, 4), frameon=False)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            self._window = axes.imshow(picture)
        self._window.set_data(picture)
        self._window.figure.canvas.draw_idle()
        self._window.figure.canvas.flush_events()


class EdgeAIGCVector(VectorEnv[Any, Any, Array]):
    """N worlds as one Gymnasium vector environment; the batched environment plays all of them at once.

    All worlds end their episodes together. Autoreset is `NEXT_STEP`: the step after the last one ignores its actions,
    starts new episodes and returns their first observations with rewards of 0 and no flags. A seed is one for all.

    Args:
        num_envs: N.
        **arguments: of `views.View`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode is not None:
            raise UserError("render_mode: only a single environment draws; make one with gymnasium.make")
        self.view = View(num_envs=num_envs, **arguments)
        self.num_envs = num_envs
        self.single_observation_space = self.view.observation_space()
        self.single_action_space = self.view.action_space()
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all worlds anew.

        Args:
            seed: a whole number for all, or a list with one per world, which together are one seed.
            options: `reset_mask` is refused unless all its elements are true: worlds start together.
        """
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise UserError("options.reset_mask: the worlds of one batch start together; leave it out")
        fresh = seed is not None or self._np_random is None
        if isinstance(seed, list | tuple):
            if len(seed) != self.num_envs or not all(isinstance(n, int | np.integer) and n >= 0 for n in seed):
                raise UserError(f"seed: {seed!r} is no list of {self.num_envs} whole numbers of at least 0")
            seed = hash(tuple(map(int, seed))) % 2**63
        super().reset(seed=seed)
        observation = self.view.reset(int(self.np_random.integers(2**31)) if fresh else None)
        return observation, {}

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        never = np.zeros(self.num_envs, dtype=bool)
        if self.view.over and self._np_random is not None:
            observation, _ = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), {}
        observation, reward, metrics = self.view.step(actions)
        info: dict[str, Any] = {}
        for name, value in metrics.items():
            info |= {name: value.double().numpy(), f"_{name}": np.ones(self.num_envs, dtype=bool)}
        truncated = np.full(self.num_envs, self.view.over)
        return observation, reward.mean(-1).double().numpy(), never, truncated, info


class CacheIndex(gymnasium.ActionWrapper[Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Numbers the caches that fit, for agents with `Discrete` actions such as DQN.

    Action 0 is the empty cache; the others follow `all_caches`.

    Raises:
        UserError: the environment does not decide the cache alone, has several cells or more than `MAX_MODELS` models.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.ActionWrapper.__init__(self, env)
        inner = env.unwrapped
        if not isinstance(inner, EdgeAIGCGym) or inner.view.decides != "cache" or inner.view.scenario.cells > 1:
            raise UserError('CacheIndex: wants one cell whose environment was made with decides="cache"')
        if inner.view.scenario.models > MAX_MODELS:
            raise UserError(
                f"CacheIndex: {inner.view.scenario.models} models have too many caches; at most {MAX_MODELS}"
            )
        subsets, fit = all_caches(inner.view.scenario)
        self.caches = subsets[fit].to(torch.int8).numpy()
        self.action_space = spaces.Discrete(len(self.caches))

    def action(self, action: Any) -> Array:
        number = np.asarray(action)
        if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() < len(self.caches):
            raise UserError(f"action: {action!r} is no whole number from 0 to {len(self.caches) - 1}")
        return self.caches[number.item()]


def register() -> None:
    """Register `EdgeAIGC-v0`, whose scenario is an argument, and `EdgeAIGC-NAME-v0` for every shipped one."""
    names = sorted(path.stem for path in (CONFIG_ROOT / "env").glob("*.yaml") if not path.stem.startswith("_"))
    module = __name__
    for name in (None, *names):
        gymnasium.register(
            f"{NAME}-v0" if name is None else f"{NAME}-{name}-v0",
            entry_point=f"{module}:EdgeAIGCGym",
            vector_entry_point=f"{module}:EdgeAIGCVector",
            kwargs={} if name is None else {"scenario": name},
        )


register()
