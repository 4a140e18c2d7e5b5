"""Stable-Baselines3 on the world: SAC learns the allocation, beside the equal split.

pip install "lightning-t2drl[rl]"
python stable_baselines3_sac.py
"""

import gymnasium
import numpy as np
from stable_baselines3 import SAC

import lightning_t2drl.envs.gymnasium  # noqa: F401 - registers the environments


def mean_utility(env: gymnasium.Env, model: SAC | None, episodes: int) -> float:
    """Per slot, over whole episodes that are the same for everybody; without a model all get the same share."""
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


def main(steps: int = 20_000, episodes: int = 10) -> dict[str, float]:
    """Mean utility per slot of the equal split and of SAC after so many slots."""
    env = gymnasium.make("EdgeAIGC-v0", scenario="paper", decides="allocation", cacher="popular")
    model = SAC("MlpPolicy", env, gamma=0.0, learning_starts=min(1_000, steps // 2), train_freq=4, seed=0)
    model.learn(steps)  # gamma = 0: what is allocated now does not change what is asked next
    return {"equal split": mean_utility(env, None, episodes), "SAC": mean_utility(env, model, episodes)}


if __name__ == "__main__":
    for name, utility in main().items():
        print(f"{name:>12}: {utility:.4f} per slot")
