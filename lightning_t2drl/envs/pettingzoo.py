"""Several cells as agents of a PettingZoo environment: `parallel_env(scenario="paper", cells=3)`."""

from __future__ import annotations

from typing import Any

import gymnasium
from pettingzoo import ParallelEnv

from lightning_t2drl.envs.views import View, part
from lightning_t2drl.errors import UserError


class EdgeAIGCParallel(ParallelEnv[str, Any, Any]):
    """One world whose cells are agents, `cell_0` to `cell_{B-1}`; arguments and observations are those of `views.View`.

    Every cell sees its own observation and gets its own reward, such that the mean over cells is the mean over users.
    All are truncated together after the last frame. `infos` hold, for every cell, the metrics of the whole world.

    Args:
        render_mode: `rgb_array` or None.
        **arguments: of `views.View`.
    """

    metadata = {"name": "edge_aigc_v0", "render_modes": ["rgb_array"], "is_parallelizable": True}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode: {render_mode!r} is not rgb_array")
        self.render_mode = render_mode
        self.view = View(**arguments | {"num_envs": 1, "joint": False})
        self.possible_agents = [f"cell_{cell}" for cell in range(self.view.scenario.cells)]
        self.agents: list[str] = []
        self.observation_spaces = {agent: self.view.observation_space() for agent in self.possible_agents}
        self.action_spaces = {agent: self.view.action_space() for agent in self.possible_agents}
        self._seeded = False

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        if seed is None and not self._seeded:
            seed = gymnasium.utils.seeding.np_random()[1]
        self._seeded = True
        self.agents = list(self.possible_agents)
        observation = self.view.reset(seed)
        return self._by_agent(observation), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        if not self.agents:
            raise gymnasium.error.ResetNeeded("the episode is over, or none was started: call reset()")
        if unknown := [agent for agent in actions if agent not in self.agents]:
            raise UserError(f"actions: {unknown[0]!r} is no agent; there are {', '.join(self.agents)}")
        if missing := [agent for agent in self.agents if agent not in actions]:
            raise UserError(f"actions: none for {', '.join(missing)}")
        observation, reward, metrics = self.view.step([actions[agent] for agent in self.possible_agents])
        agents, over = self.possible_agents, self.view.over
        rewards = dict(zip(agents, reward[0].tolist(), strict=True))
        infos = {agent: {name: value.item() for name, value in metrics.items()} for agent in agents}
        self.agents = [] if over else list(agents)
        return self._by_agent(observation), rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, over), infos

    def render(self) -> Any:
        if self.render_mode == "rgb_array" and self.view.shown:
            return self.view.picture()
        return None

    def _by_agent(self, observation: Any) -> dict[str, Any]:
        return {agent: part(observation, 0, cell) for cell, agent in enumerate(self.possible_agents)}


def parallel_env(**arguments: Any) -> EdgeAIGCParallel:
    """A PettingZoo environment; arguments of `EdgeAIGCParallel`."""
    return EdgeAIGCParallel(**arguments)
