"""Many worlds as Stable-Baselines3 takes them: those of Gymnasium's vector, restarted within the step that ends them."""

import numpy as np
from stable_baselines3 import PPO

from lightning_t2drl.envs.gymnasium import EdgeAIGCVector
from lightning_t2drl.envs.stable_baselines3 import EdgeAIGCVecEnv

TINY = {"users": 4, "frames_per_episode": 2, "slots_per_frame": 2}


def test_worlds_are_those_of_the_vector_and_restart_at_once():
    ours, vector = EdgeAIGCVecEnv(3, **TINY), EdgeAIGCVector(3, **TINY)
    seed = 7
    ours.seed(seed)
    first = ours.reset()
    assert first.shape == (3, *ours.observation_space.shape)
    vector.reset(seed=0)
    assert np.array_equal(first, vector.view.reset(seed))  # the vector draws its own from what it is given
    for step in range(1, 9):
        action = np.full((3, *ours.action_space.shape), step / 10 - 0.5, dtype=np.float32)
        seen, reward, over, infos = ours.step(action)
        theirs, their_reward, _, truncated, metrics = vector.step(action)
        assert np.allclose(reward, their_reward) and np.array_equal(over, truncated) and over.all() == (step % 4 == 0)
        assert np.allclose([info["utility"] for info in infos], metrics["utility"])
        assert all(info["TimeLimit.truncated"] == over.all() for info in infos)
        if over.all():
            assert np.array_equal([info["terminal_observation"] for info in infos], theirs)
            theirs = vector.step(action)[0]  # starts the next episodes
        assert np.array_equal(seen, theirs)


def test_agents_learn_on_it():
    PPO("MlpPolicy", EdgeAIGCVecEnv(2, **TINY), n_steps=4, batch_size=4, n_epochs=1, seed=0).learn(16)
    flags = EdgeAIGCVecEnv(2, decides="cache", observation="dict", **TINY)
    PPO("MultiInputPolicy", flags, n_steps=4, batch_size=4, n_epochs=1, seed=0).learn(8)
