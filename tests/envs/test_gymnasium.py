"""The Gymnasium views: spaces, seeds, the same rewards as the loop's, vectors, pictures, one-line errors."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.envs.gymnasium import CacheIndex, EdgeAIGCGym, EdgeAIGCVector
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.loop.slots import frame
from lightning_t2drl.system import amend_cache, load_scenario
from lightning_t2drl.system.caching import fits
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

TINY = {"users": 4, "frames_per_episode": 3, "slots_per_frame": 2}


def make(**arguments):
    return gymnasium.make("EdgeAIGC-v0", **TINY | arguments)


@pytest.mark.parametrize("decides", ["allocation", "cache", "both"])
@pytest.mark.parametrize(
    ("observation", "cells"), [("flat", 1), ("dict", 1), ("flat", 3), ("dict", 3)], ids=lambda value: str(value)
)
def test_passes_the_checkers(decides, observation, cells):
    env = make(decides=decides, observation=observation, cells=cells, render_mode="rgb_array")
    with warnings.catch_warnings():
        if observation == "flat":
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="__array__ implementation")  # of another package
            warnings.filterwarnings("ignore", message=".*[Dd]eprecat")
        check_env(env.unwrapped, skip_render_check=(observation, cells) != ("flat", 1))
        check_env_of_sb3(env.unwrapped, skip_render_check=True)


def test_each_shipped_scenario_has_an_id():
    names = [path.stem for path in (CONFIG_ROOT / "env").glob("*.yaml")]
    assert {f"EdgeAIGC-{name}-v0" for name in names} | {"EdgeAIGC-v0"} <= set(gymnasium.registry)
    drift = gymnasium.make("EdgeAIGC-drift-v0", users=5).unwrapped.view.scenario
    assert drift == load_scenario("drift", users=5)


def test_rewards_are_those_that_the_loop_plays():
    scenario = load_scenario("paper", **TINY)
    rules = PopularCacher(scenario, PopularConfig()), EqualAllocator(scenario, EqualConfig())
    gym = EdgeAIGCGym(scenario=scenario, cacher=rules[0])
    observation, _ = gym.reset(seed=3)
    env = EdgeAIGCEnv(scenario)
    env.set_state(gym.view.env.get_state())
    for _ in range(scenario.frames_per_episode):
        for slot in frame(env, *rules):
            gym_cache = observation[-scenario.models :]
            assert np.array_equal(gym_cache, amend_cache(scenario, slot.cache)[0, 0])
            observation, reward, terminated, truncated, info = gym.step(slot.raw[0, 0].numpy())
            assert reward == pytest.approx(slot.following["reward", "slot"].item())
            assert info["utility"] == pytest.approx(reward)
            assert not terminated
    assert truncated
    with pytest.raises(gymnasium.error.ResetNeeded):
        gym.step(slot.raw[0, 0].numpy())


def test_a_step_of_the_cacher_is_a_frame():
    changes = {"decides": "cache", "allocator": "exact", "switch_cost_per_gb": 0.001, "cells": 2, "observation": "dict"}
    frames, slots = make(**changes), make(reward="slot", **changes)
    for env in (frames, slots):
        env.reset(seed=5)
    cache = np.zeros((2, 10), dtype=np.int8)
    cache[0, :3], cache[1, 7:] = 1, 1
    loaded = load_scenario("paper").model_storage[cache.any(0)].sum() / 8e9 / 2  # GB per cell; all fit
    for number in range(3):
        seen, reward, _, truncated, info = frames.step(cache)
        total = slots.step(cache)[1]
        assert np.array_equal(seen["cache"], cache)
        assert reward == pytest.approx(total / 2 - (0.001 * loaded.item() if number == 0 else 0), abs=1e-5)
        assert info["utility"] == pytest.approx(total / 2, abs=1e-5)
        assert truncated == (number == 2)


def test_who_caches_sees_what_other_cells_hold():
    env = make(decides="cache", observation="dict", cells=2, edge_link_mbps=100.0)
    env.reset(seed=0)
    cache = np.zeros((2, 10), dtype=np.int8)
    cache[0, 2], cache[1, 6] = 1, 1
    seen = env.step(cache)[0]
    assert seen in env.observation_space and np.array_equal(seen["nearby"], cache[::-1])
    flat = make(decides="cache", cells=2, edge_link_mbps=100.0)
    assert flat.reset(seed=0)[0] in flat.observation_space


def test_both_are_decided_by_one_vector():
    env = make(decides="both", observation="dict", reward="frame")
    seen, _ = env.reset(seed=1)
    assert seen["frame_start"] == 1 and not seen["cache"].any()
    action = np.concatenate(([1, -1, 1] + [-1] * 7, np.full(8, -0.5))).astype(np.float32)
    seen, reward, *_ = env.step(action)
    assert seen["cache"].nonzero()[0].tolist() == [0, 2] and seen["frame_start"] == 0 and reward == 0
    seen, reward, *_ = env.step(-action)
    assert seen["cache"].nonzero()[0].tolist() == [0, 2] and seen["frame_start"] == 1 and reward != 0


def test_worlds_side_by_side_restart_together_in_the_next_step():
    ours = gymnasium.make_vec("EdgeAIGC-v0", num_envs=3, **TINY)
    theirs = gymnasium.make_vec("EdgeAIGC-v0", num_envs=3, vectorization_mode="sync", **TINY)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    again = gymnasium.make_vec("EdgeAIGC-v0", num_envs=3, **TINY)
    first, _ = ours.reset(seed=4)
    theirs.reset(seed=4)
    assert np.array_equal(first, again.reset(seed=4)[0]) and not np.array_equal(first[0], first[1])
    for step in range(1, 15):
        action = np.full(ours.action_space.shape, -0.5, dtype=np.float32)
        (seen, reward, ended, cut, info), other = ours.step(action), theirs.step(action)
        assert seen in ours.observation_space
        assert np.array_equal(ended, other[2]) and np.array_equal(cut, other[3])
        assert np.array_equal(reward == 0, other[1] == 0) and (reward == 0).all() == (step % 7 == 0)
        assert cut.all() == (step % 7 == 6)
        assert {key: value.dtype for key, value in info.items()} == {k: v.dtype for k, v in other[4].items()}
        assert np.array_equal(seen, again.step(action)[0])
    assert not np.array_equal(ours.reset()[0], first) and np.array_equal(ours.reset(seed=4)[0], first)
    with pytest.raises(UserError, match="start together"):
        ours.reset(options={"reset_mask": np.array([True, False, True])})


def test_a_trained_policy_is_handed_over_as_an_object():
    scenario = load_scenario("paper", **TINY)
    learned = EqualAllocator(scenario, EqualConfig())
    env = make(decides="cache", allocator=learned)
    assert env.unwrapped.view.allocator is learned
    with pytest.raises(UserError, match=r"another scenario.*; bandwidth differ"):
        make(decides="cache", allocator=learned, bandwidth_mhz=10.0)


def test_caches_that_fit_are_numbered_for_agents_with_discrete_actions():
    env = CacheIndex(make(decides="cache"))
    check_env(env, skip_render_check=True)
    check_env_of_sb3(env, skip_render_check=True)
    assert env.action_space.n == 360  # as docs/how-to/gymnasium.md says
    assert fits(env.unwrapped.view.scenario, torch.as_tensor(env.caches, dtype=torch.bool)).all()
    env.reset(seed=0)
    seen = env.step(env.action_space.n - 1)[0]
    assert np.array_equal(seen[3:13], env.caches[-1])
    DQN("MlpPolicy", env, learning_starts=4, buffer_size=20, seed=0).learn(8)
    for odd in (-1, 360, 1.5, "a", [1, 2]):
        with pytest.raises(UserError, match="no whole number from 0 to 359"):
            env.action(odd)
    with pytest.raises(UserError, match="too many"):
        CacheIndex(make(decides="cache", scenario="drift", model_storage_gb=[5.0] * 20))


def test_pictures(monkeypatch):
    several = {"cells": 3, "users": 9, "edge_link_mbps": 100.0, "active_users": [4, 9]}
    for changes in ({}, several):
        env = make(render_mode="rgb_array", **changes)
        env.reset(seed=0)
        before = env.render()
        env.step(env.action_space.sample())
        after = env.render()
        assert before.shape == after.shape == (400, 900, 3) and before.dtype == np.uint8
        assert not np.array_equal(before, after)
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    plt.close("all")  # what other tests drew
    window = make(render_mode="human")
    window.reset(seed=0)
    assert plt.get_fignums() and window.render() is None
    window.close()
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scenario": "moon"}, "env=moon: no such scenario"),
        ({"decides": "all"}, "decides: 'all' is none of allocation, cache, both"),
        ({"observation": "image"}, "observation: 'image' is none of flat, dict"),
        ({"reward": "day"}, "reward: 'day' is none of slot, frame"),
        ({"cacher": "psychic"}, "cacher=psychic: no such rule; rules are lru, most_requested, oracle, popular, random"),
        ({"cacher": "ddqn"}, "cacher=ddqn: learns: train it, then hand over the object"),
        ({"allocator": 3}, "allocator: 3 is neither a rule by its name nor a policy"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"colour": "red"}, "env.colour: no such key"),
        ({"num_envs": 5}, "num_envs: this is one environment"),
        ({"render_mode": "ansi"}, "render_mode: 'ansi' is none of rgb_array, human"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_in_one_line(arguments, words):
    with pytest.raises(UserError) as error:
        make(**arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_impossible_actions_are_refused():
    env = make()
    env.reset(seed=0)
    with pytest.raises(UserError, match="action: 6 numbers, not 8"):
        env.unwrapped.step(np.zeros(6))
    for odd in (np.zeros((2, 4)), np.zeros((4, 2)).T, [["a", "b"]] * 4, [[0], [0, 1]], {"cell": 1}):
        with pytest.raises(UserError, match=r"^action: .*see action_space$"):
            env.unwrapped.step(odd)
    env.unwrapped.step(np.zeros(8))
    with pytest.raises(NonFiniteError):
        env.unwrapped.step(np.full((4, 2), np.nan))


@pytest.mark.parametrize("seed", [[1, 2, 3], [None, 1], ["a", "b"], [-1, 1]])
def test_one_seed_per_world_or_one_for_all(seed):
    worlds = EdgeAIGCVector(2, **TINY)
    with pytest.raises(UserError, match=r"^seed: .* is no list of 2 whole numbers"):
        worlds.reset(seed=seed)


def test_compiled_or_not_an_agent_sees_the_same():
    plain, compiled = (EdgeAIGCGym(decides="both", **TINY, compile=how) for how in (False, {"backend": "eager"}))
    assert np.allclose(plain.reset(seed=1)[0], compiled.reset(seed=1)[0], atol=1e-4)
    plain.action_space.seed(0)
    for _ in range(5):
        action = plain.action_space.sample()
        one, other = plain.step(action), compiled.step(action)
        assert np.allclose(one[0], other[0], atol=1e-4) and one[1] == pytest.approx(other[1], abs=1e-5)
