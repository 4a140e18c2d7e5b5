"""RLlib on the world: PPO learns the allocation, and cells as agents of their own share one policy.

pip install "lightning-t2drl[rl]" "ray[rllib]"    # RLlib pins a Gymnasium of its own: best in an environment of its own
python rllib_ppo.py
"""

import gymnasium
from gymnasium.spaces import flatten_space
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

import lightning_t2drl.envs.gymnasium  # noqa: F401 - registers the environments
from lightning_t2drl.envs.pettingzoo import parallel_env


def one(keys: dict) -> gymnasium.Env:
    """One cell. RLlib wants an action to be one vector, which the environment takes as well."""
    env = gymnasium.make("EdgeAIGC-v0", decides="allocation", **keys)
    return gymnasium.wrappers.TransformAction(env, lambda action: action, flatten_space(env.action_space))


def cells(keys: dict) -> ParallelPettingZooEnv:
    """Several cells, each an agent."""
    env = parallel_env(decides="allocation", **keys)
    env.action_spaces = {agent: flatten_space(space) for agent, space in env.action_spaces.items()}
    return ParallelPettingZooEnv(env)


def main(rounds: int = 10, slots: int = 2_000, **scenario: object) -> dict[str, float]:
    """Mean reward per slot in the last round of training, of one cell and of three that share one policy."""
    register_env("one cell", one)
    register_env("three cells", cells)
    worlds = {"one cell": {"scenario": "paper"}, "three cells": {"scenario": "paper", "cells": 3, "users": 15}}
    found = {}
    for name, keys in worlds.items():
        config = PPOConfig().environment(name, env_config=keys | scenario).env_runners(num_env_runners=0)
        config.training(gamma=0.0, train_batch_size_per_learner=slots, minibatch_size=min(128, slots), num_epochs=10)
        if "cells" in keys:
            config.multi_agent(policies={"cell"}, policy_mapping_fn=lambda *_, **__: "cell")
        algorithm = config.build_algo()
        for _ in range(rounds):
            result = algorithm.train()["env_runners"]
        found[name] = result["episode_return_mean"] / result["episode_len_mean"] / keys.get("cells", 1)
        algorithm.stop()
    return found


if __name__ == "__main__":
    for name, utility in main().items():
        print(f"{name:>14}: {utility:.4f} per slot")
