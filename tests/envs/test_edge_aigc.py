"""The TorchRL environment: specs, two timescales, resets, exact replay."""

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.caching import fits


def make(n=4, seed=0, **overrides):
    return EdgeAIGCEnv(load_scenario("paper", **overrides), n, seed)


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("observation", ["state", "frequencies"])
def test_specs(n, observation):
    check_env_specs(make(n, popularity_observation=observation))


def test_works_with_a_torchrl_collector():
    env = make(3)
    with torch.random.fork_rng():
        collector = Collector(env, policy=env.rand_action, frames_per_batch=30, total_frames=60)
        batches = [batch for batch in collector]
        collector.shutdown()
    assert [batch.shape for batch in batches] == [torch.Size([3, 10])] * 2
    assert torch.isfinite(batches[0]["next", "cells", "reward", "slot"]).all()


def test_cache_is_latched_for_a_frame_and_always_fits():
    env = make(5)
    with torch.random.fork_rng():
        roll = env.rollout(30, break_when_any_done=False)
    held = roll["next", "cells", "cache"].unflatten(1, (3, 10))
    assert (held == held[:, :, :1]).all()
    assert not (held[:, 0] == held[:, 1]).all()
    assert fits(env.scenario, held).all()
    assert roll["frame_start"].squeeze(-1)[0].nonzero().flatten().tolist() == [0, 10, 20]


def test_frame_reward_is_the_mean_of_its_slots_minus_what_was_loaded():
    env = make(4, switch_cost_per_gb=0.01)
    with torch.random.fork_rng():
        roll = env.rollout(20, break_when_any_done=False)
    slot, frame = (roll["next", "cells", "reward", key][..., 0, 0].unflatten(1, (2, 10)) for key in ("slot", "frame"))
    assert (frame[..., :-1] == 0).all()
    held = roll["next", "cells", "cache"][:, :, 0].unflatten(1, (2, 10))[:, :, 0]
    before = torch.cat((torch.zeros_like(held[:, :1]), held[:, :1]), 1)
    loaded = ((held & ~before) * env.scenario.model_storage).sum(-1) / 8e9
    torch.testing.assert_close(frame[..., -1], slot.mean(-1) - 0.01 * loaded.float(), rtol=1e-4, atol=1e-5)


def test_slot_reward_is_the_mean_utility():
    with torch.random.fork_rng():
        roll = make(4).rollout(5)
    expected = roll["next", "cells", "served", "utility"].mean(-1, keepdim=True)
    torch.testing.assert_close(roll["next", "cells", "reward", "slot"], expected)


def test_frequencies_are_last_frames_requests():
    env = make(2, popularity_observation="frequencies")
    with torch.random.fork_rng():
        roll = env.rollout(20, break_when_any_done=False)
    asked = roll["cells", "request"][:, :10, 0].flatten(1)
    share = torch.stack([torch.bincount(row, minlength=10) / 100 for row in asked])
    torch.testing.assert_close(roll["cells", "popularity"][:, 10, 0], share)
    torch.testing.assert_close(roll["cells", "popularity"][:, 19, 0], share)
    torch.testing.assert_close(roll["cells", "popularity"][:, 0, 0], torch.full((2, 10), 0.1))


def test_same_seed_same_worlds_whoever_acts_and_state_replays_exactly():
    a, b = make(3, seed=7), make(3, seed=7)
    other = make(3, seed=8)
    torch.manual_seed(0)
    one, two = a.rollout(12), b.rollout(12)
    assert torch.equal(one["cells", "gain"], two["cells", "gain"])  # though their random actions differ
    assert not torch.equal(one["cells", "gain"], other.rollout(12)["cells", "gain"])
    acted = one["cells", "action"]
    c, d = make(3, seed=7), make(3, seed=7)
    for slot in range(3):
        assert (c.play(acted["cache"][:, slot], acted["allocation"][:, slot])
                == d.play(acted["cache"][:, slot], acted["allocation"][:, slot])).all()  # fmt: skip
    saved = a.get_state()
    cache, raw = one["cells", "action", "cache"][:, 0], one["cells", "action", "allocation"][:, 0]
    first = [a.play(cache, raw) for _ in range(3)]
    a.set_state(saved)
    assert all((x == y).all() for x, y in zip(first, [a.play(cache, raw) for _ in range(3)], strict=True))


def test_partial_reset_leaves_other_worlds_alone():
    env = make(3)
    with torch.random.fork_rng():
        roll = env.rollout(5)
    last = roll[:, -1]["next"].clone()
    last["_reset"] = torch.tensor([[True], [False], [False]])
    fresh = env.reset(last.clone())
    assert torch.equal(fresh["cells", "gain"][1:], last["cells", "gain"][1:])
    assert not torch.equal(fresh["cells", "gain"][0], last["cells", "gain"][0])
    assert fresh["frame_start"].flatten().tolist() == [True, False, False]
    assert not fresh["cells", "cache"][0].any() and torch.equal(fresh["cells", "cache"][1:], last["cells", "cache"][1:])
    # The others go on with their frame: cache latched, slots counted, frame reward summed over all ten slots.
    with torch.random.fork_rng():
        rest = env.rollout(5, auto_reset=False, tensordict=fresh, break_when_any_done=False)
    assert rest["next", "frame_start"][:, :, 0].tolist() == [[False] * 5] + [[False] * 4 + [True]] * 2
    assert torch.equal(rest["next", "cells", "cache"][1:, -1], last["cells", "cache"][1:])
    slots = torch.cat((roll["next", "cells", "reward", "slot"], rest["next", "cells", "reward", "slot"]), 1)
    frame = rest["next", "cells", "reward", "frame"]
    torch.testing.assert_close(frame[1:, -1], slots[1:].mean(1))
    assert (frame[0] == 0).all()


def test_episodes_are_truncated_after_all_frames():
    with torch.random.fork_rng():
        roll = make(2, frames_per_episode=3, slots_per_frame=4).rollout(100)
    assert roll.shape[1] == 12
    assert roll["next", "truncated"][:, -1].all() and not roll["next", "terminated"].any()


def test_nan_is_an_error_that_names_its_source():
    env = make(1)
    with pytest.raises(NonFiniteError, match="allocation"):
        env.play(env.observe()["cache"], torch.full((1, 1, 10, 2), float("nan")))


@pytest.mark.parametrize("observation", ["state", "frequencies"])
def test_worlds_in_step_skip_only_what_changes_nothing(observation):
    changes = {"popularity_observation": observation, "popularity_change_every": 7, "switch_cost_per_gb": 0.01}
    in_step, one_by_one = make(3, **changes), make(3, **changes)
    generator = torch.Generator().manual_seed(1)
    for _ in range(25):
        cache = torch.rand(3, 1, 10, generator=generator) < 0.5
        raw = 2 * torch.rand(3, 1, 10, 2, generator=generator) - 1
        one_by_one._slot = None  # what the environment knows of worlds that were reset one by one
        a, b = in_step.play(cache, raw), one_by_one.play(cache, raw)
        assert (a == b).all()
    assert in_step._slot == 25


def test_worlds_that_were_reset_apart_are_not_in_step():
    env = make(3)
    now = env.reset()
    for _ in range(4):
        now = env.step(now.update(env.action_spec.zero()))["next"]
    assert env._slot == 4
    env.reset(now.set("_reset", torch.tensor([[True], [False], [True]])))
    assert env._slot is None and env.get_state()["world"]["slot"].tolist() == [0, 4, 0]
    env.set_state(env.get_state())
    assert env._slot is None
    env.reset()
    assert env._slot == 0
