"""Trains an agent of Stable-Baselines3 on the allocation, with a stopwatch:

    python -m benchmarks.agents "SAC gamma=0" POINTS.csv KEY=VALUE ...

The first word is the algorithm and arguments of its own. The last ones are those of `t2drl train`, of which the world,
`env.num_envs`, `frames`, `seed` and `evaluation` count. Popular models are cached. POINTS.csv gets a row for each
evaluation, on the held-out worlds of `t2drl evaluate`. CPU and wall seconds are those of training alone.
"""

from __future__ import annotations

import ast
import csv
import sys
from collections.abc import Iterator
from typing import Any

import stable_baselines3
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.clocked import Clock
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.envs.stable_baselines3 import EdgeAIGCVecEnv
from lightning_t2drl.envs.views import View
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.run.compose import compose
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario_config import build_scenario


class Agent(Allocator):
    """An agent from outside as an allocator, so that our own loop plays it.

    Args:
        view: what the agent sees.
        model: has `predict` of Stable-Baselines3.
    """

    def __init__(self, view: View, model: Any) -> None:
        super().__init__(view.scenario, None)
        self.view, self.model = view, model

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        action, _ = self.model.predict(self.view.see(observation), deterministic=not explore)
        return torch.from_numpy(action).view(*observation.batch_size, -1, 2)


def points(agent: str, words: list[str]) -> Iterator[tuple[int, int, int, float, float, float]]:
    """Train; frame, slots, gradient steps, CPU seconds, wall seconds and mean utility before and along the way."""
    config = compose("train", words).config
    scenario, evaluation, worlds = build_scenario(config.env), config.evaluation, config.env.num_envs
    kind, *arguments = agent.split()
    keys = {name: ast.literal_eval(value) for name, _, value in (word.partition("=") for word in arguments)}
    caches = PopularCacher(scenario, PopularConfig())
    env = EdgeAIGCVecEnv(worlds, scenario=scenario, decides="allocation", cacher=caches)
    model = getattr(stable_baselines3, kind)(
        "MlpPolicy", env, seed=derive_seed(config.seed, agent) % 2**31, device="cpu", **keys
    )
    steps, clock = 0, Clock()

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(count)
    frame = worlds * scenario.slots_per_frame
    for mark in (*range(0, config.frames, evaluation.every_n_frames), config.frames):
        left = mark * frame - model.num_timesteps
        if left > 0:  # a rollout may have gone beyond the mark
            clock.go()
            model.learn(left, reset_num_timesteps=False)
            clock.stop()
        found = evaluate(scenario, caches, Agent(env.view, model), evaluation.episodes, evaluation.seed)["utility"]
        yield model.num_timesteps // frame, model.num_timesteps, steps, *clock.total, found.mean().item()
    hook.remove()


def main(agent: str, path: str, *words: str) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(points(agent, list(words)))


if __name__ == "__main__":
    main(*sys.argv[1:])
