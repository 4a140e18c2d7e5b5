"""Cells as PettingZoo agents."""

import gymnasium
import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from lightning_t2drl.envs.gymnasium import EdgeAIGCGym
from lightning_t2drl.envs.pettingzoo import parallel_env
from lightning_t2drl.errors import UserError

THREE = {"cells": 3, "users": 6, "frames_per_episode": 3, "slots_per_frame": 2}


@pytest.mark.parametrize("decides", ["allocation", "cache", "both"])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_passes_the_checkers(decides, observation, recwarn):
    def make():
        return parallel_env(decides=decides, observation=observation, **THREE)

    parallel_api_test(make(), num_cycles=20)
    parallel_seed_test(make, num_cycles=8)
    assert not [w for w in recwarn if "agent" in str(w.message).lower()]


def test_cells_share_the_reward_of_the_whole_world():
    agents, whole = parallel_env(**THREE), EdgeAIGCGym(**THREE)
    assert agents.possible_agents == ["cell_0", "cell_1", "cell_2"]
    seen, infos = agents.reset(seed=7)
    whole.reset(seed=7)
    whole.view.env.set_state(agents.view.env.get_state())
    whole.view.cells = agents.view.cells
    assert set(seen) == set(infos) == set(agents.agents)
    assert len({value.tobytes() for value in seen.values()}) == 3
    for step in range(6):
        action = np.full((3, 6, 2), -0.3, dtype=np.float32)
        _, rewards, ended, cut, infos = agents.step(dict(zip(agents.possible_agents, action, strict=True)))
        assert np.mean(list(rewards.values())) == pytest.approx(whole.step(action)[1], abs=1e-6)
        assert infos["cell_0"]["utility"] == pytest.approx(np.mean(list(rewards.values())), abs=1e-6)
        assert not any(ended.values()) and all(cut.values()) == (step == 5)
    assert agents.agents == []


def test_pictures_and_mistakes():
    env = parallel_env(render_mode="rgb_array", **THREE)
    env.reset(seed=0)
    assert env.render().shape == (400, 900, 3)
    with pytest.raises(UserError, match="actions: 'cell_9' is no agent; there are cell_0, cell_1, cell_2"):
        env.step({"cell_9": env.action_space("cell_0").sample()})
    with pytest.raises(gymnasium.error.ResetNeeded):
        parallel_env(**THREE).step({})
    with pytest.raises(UserError, match="actions: none for cell_1, cell_2"):
        env.step({"cell_0": env.action_space("cell_0").sample()})
    with pytest.raises(UserError, match="render_mode"):
        parallel_env(render_mode="human")
