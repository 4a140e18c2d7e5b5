"""Stable-Baselines3 on the world: SAC and PPO learn the allocation, DQN the cache.

pip install "lightning-t2drl[rl]"
python stable_baselines3_agents.py SAC
"""

import sys

import gymnasium
import numpy as np
from stable_baselines3 import DQN, PPO, SAC

from lightning_t2drl.envs.gymnasium import CacheIndex
from lightning_t2drl.envs.stable_baselines3 import EdgeAIGCVecEnv

# What is decided now does not change what is asked for next: gamma = 0 is exact.
AGENTS = {
    "SAC": (SAC, "allocation", {"gradient_steps": 2, "ent_coef": 0.001}),
    "PPO": (PPO, "allocation", {"n_steps": 125, "batch_size": 100}),
    "DQN": (DQN, "cache", {"learning_starts": 200, "train_freq": 1, "exploration_fraction": 0.5}),
}
SCENARIO = "drift"  # popularity moves between rankings, so that caches matter


def mean_utility(env: gymnasium.Env, model: SAC | PPO | DQN | None, episodes: int) -> float:
    """Per slot, over whole episodes that are the same for everybody; without a model all users get the same."""
    utilities = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=1_000 + episode)
        over = False
        while not over:
            if model is None:
                action = np.full(env.action_space.shape, 2 / env.action_space.shape[0] - 1, dtype=np.float32)
            else:
                action, _ = model.predict(observation, deterministic=True)
            observation, _, _, over, info = env.step(action)
            utilities.append(info["utility"])
    return float(np.mean(utilities))


def main(agent: str = "SAC", steps: int | None = None, episodes: int = 10, num_envs: int = 16) -> dict[str, float]:
    """Mean utility per slot of popular caches split equally, and of an agent after so many slots (DQN: frames)."""
    if agent not in AGENTS:
        raise SystemExit(f"{agent}: no such agent; there are {', '.join(AGENTS)}")
    kind, decides, keys = AGENTS[agent]
    plain = gymnasium.make("EdgeAIGC-v0", scenario=SCENARIO, decides="allocation", cacher="popular")
    if decides == "cache":  # DQN chooses among the caches that fit, by number; all users get the same
        env = worlds = CacheIndex(gymnasium.make("EdgeAIGC-v0", scenario=SCENARIO, decides="cache", allocator="equal"))
    else:  # under popular caches, in many worlds at once
        env, worlds = plain, EdgeAIGCVecEnv(num_envs, scenario=SCENARIO, decides="allocation", cacher="popular")
    model = kind("MlpPolicy", worlds, gamma=0.0, seed=0, **keys)
    model.learn(steps or {"allocation": 32_000, "cache": 2_000}[decides])
    return {"popular, equal": mean_utility(plain, None, episodes), agent: mean_utility(env, model, episodes)}


if __name__ == "__main__":
    for name, utility in main(*sys.argv[1:]).items():
        print(f"{name:>14}: {utility:.4f} per slot")
