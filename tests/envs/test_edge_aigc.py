"""The TorchRL environment: specs, two timescales, resets, exact replay."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.envs.worlds import load_per_user
from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.loop.metrics import slot_metrics
from lightning_t2drl.system import amend_allocation, load_scenario
from lightning_t2drl.system.caching import fits


def make(n=4, seed=0, **overrides):
    return EdgeAIGCEnv(load_scenario("paper", **overrides), n, seed)


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("observation", ["state", "frequencies"])
def test_specs(n, observation):
    check_env_specs(make(n, popularity_observation=observation))


SEVERAL = {"cells": 4, "users": 12, "active_users": [4, 12], "edge_link_mbps": 200.0, "popularity_scope": "per_cell",
           "ranking": "shuffled", "shadowing_db": 4.0, "arrival_rate": 0.2, "departure_rate": 0.2}  # fmt: skip


@pytest.mark.parametrize("observation", ["state", "probabilities", "frequencies"])
@pytest.mark.parametrize("changes", [{"active_users": [2, 9]}, {"cells": 3}, SEVERAL], ids=["loads", "three", "all"])
def test_specs_of_several_cells(observation, changes):
    check_env_specs(make(3, popularity_observation=observation, **changes))


def test_cells_are_rewarded_by_their_users_share():
    env = make(5, **SEVERAL)
    with torch.random.fork_rng():
        roll = env.rollout(20, break_when_any_done=False)
    served, attached = roll["next", "cells", "served"], roll["cells", "attached"]
    present = attached.sum((-1, -2))
    mean = served["utility"].sum((-1, -2)) / present
    torch.testing.assert_close(roll["next", "cells", "reward", "slot"].mean((-1, -2)), mean)
    frame = roll["next", "cells", "reward", "frame"][:, 9::10]
    torch.testing.assert_close(frame, roll["next", "cells", "reward", "slot"].unflatten(1, (2, 10)).mean(2))
    load = roll["cells", "load"]
    users = attached.sum(-1).float()
    torch.testing.assert_close(
        load[:, 10] / load_per_user(env.scenario), users[:, :10].mean(1).unsqueeze(-1).expand(-1, -1, 3)
    )
    assert torch.equal(load[:, 10], load[:, 19])
    held = roll["cells", "cache"]
    for cell in range(4):
        others = torch.cat((held[..., :cell, :], held[..., cell + 1 :, :]), -2).any(-2)
        assert torch.equal(roll["cells", "nearby"][..., cell, :], others)
    assert served["nearby"].any() and served["handover"].any()
    metrics = slot_metrics(env.scenario, served[:, 0], attached[:, 0])
    torch.testing.assert_close(metrics["utility"], mean[:, 0])
    taken = roll["cells", "handover"][:, 0].sum((-1, -2))
    torch.testing.assert_close(metrics["handover_ratio"], taken / present[:, 0])


def test_rewards_of_the_published_scenario_are_pinned():
    """Measured before there were several cells."""
    env = make(2, seed=5)
    env.latch(torch.arange(10).expand(2, 1, 10) < 4)
    raw = torch.linspace(-1, 1, 40).view(2, 1, 10, 2)
    rewards = torch.stack([env.play(raw)["reward", "slot"].flatten() for _ in range(3)])
    pinned = [[0.4166489243507385, 0.5681306719779968], [0.30383729934692383, 0.5757879614830017],
              [0.3712679445743561, 0.5638242959976196]]  # fmt: skip
    torch.testing.assert_close(rewards, torch.tensor(pinned), rtol=1e-5, atol=0)


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


@pytest.mark.parametrize("changes", [{}, SEVERAL], ids=["one", "several"])
def test_same_seed_same_worlds_whoever_acts_and_state_replays_exactly(changes):
    a, b = make(3, seed=7, **changes), make(3, seed=7, **changes)
    other = make(3, seed=8, **changes)
    torch.manual_seed(0)
    one, two = a.rollout(12), b.rollout(12)
    assert torch.equal(one["cells", "gain"], two["cells", "gain"])  # though their random actions differ
    assert not torch.equal(one["cells", "gain"], other.rollout(12)["cells", "gain"])
    acted = one["cells", "action"]
    c, d = make(3, seed=7, **changes), make(3, seed=7, **changes)
    assert (c.latch(acted["cache"][:, 0]) == d.latch(acted["cache"][:, 0])).all()
    for slot in range(3):
        assert (c.play(acted["allocation"][:, slot]) == d.play(acted["allocation"][:, slot])).all()
    saved, raw = a.get_state(), one["cells", "action", "allocation"][:, 0]
    first = [a.play(raw) for _ in range(3)]
    a.set_state(saved)
    assert all((x == y).all() for x, y in zip(first, [a.play(raw) for _ in range(3)], strict=True))


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
    now = env.reset()
    action = env.action_spec.zero()
    action["cells", "action", "allocation"] += float("nan")
    with pytest.raises(NonFiniteError, match="allocation"):
        env.step(now.update(action))


@pytest.mark.parametrize("observation", ["state", "frequencies"])
def test_latch_and_play_are_step(observation):
    changes = {"popularity_observation": observation, "popularity_change_every": 7, "switch_cost_per_gb": 0.01}
    played, stepped = make(3, **changes), make(3, **changes)
    generator, now = torch.Generator().manual_seed(1), stepped.observe()
    for slot in range(25):
        cache = torch.rand(3, 1, 10, generator=generator) < 0.5
        raw = 2 * torch.rand(3, 1, 10, 2, generator=generator) - 1
        if slot % 10 == 0:
            played.latch(cache)
        action = TensorDict({"cells": {"action": {"cache": cache, "allocation": raw}}}, batch_size=[3])
        now = stepped.step(action)["next", "cells"]
        assert (played.play(raw) == now).all()


def test_latch_changes_caches_at_the_start_of_a_frame_only_and_charges_for_what_is_loaded():
    env = make(2, switch_cost_per_gb=0.01)
    cache = torch.zeros(2, 1, 10, dtype=torch.bool)
    cache[0, 0, :2] = True
    held = env.latch(cache)["cache"]
    assert torch.equal(held, cache)
    raw = torch.zeros(2, 1, 10, 2)
    slots = [env.play(raw) for _ in range(3)]
    assert torch.equal(env.latch(~cache)["cache"], cache)
    slots += [env.play(raw) for _ in range(7)]
    mean = torch.stack([slot["reward", "slot"] for slot in slots]).mean(0)
    charge = torch.tensor([0.01 * (4.3 + 6.9), 0.0]).view(2, 1, 1)
    torch.testing.assert_close(slots[-1]["reward", "frame"], mean - charge)
    assert (slots[-2]["reward", "frame"] == 0).all()


def test_what_was_executed_comes_back():
    env = make(2)
    env.latch(torch.tensor([m < 3 for m in range(10)]).expand(2, 1, 10))
    before = env.observe()
    raw = 2 * torch.rand(2, 1, 10, 2, generator=torch.Generator().manual_seed(0)) - 1
    shares = env.play(raw)["served", "shares"]
    hit = before["cache"].gather(-1, before["request"])
    torch.testing.assert_close(shares, amend_allocation(raw, hit, before["attached"]))


@pytest.mark.parametrize(
    "changes", [{}, SEVERAL, {"popularity_observation": "frequencies"}], ids=["one", "all", "seen"]
)
def test_a_compiled_slot_is_the_slot(changes):
    """As one graph, whatever makes a kernel of it."""
    plain, compiled = make(3, **changes), make(3, **changes).compile(backend="eager")
    generator = torch.Generator().manual_seed(2)
    raw = 2 * torch.rand(12, *plain.action_spec["cells", "action", "allocation"].shape, generator=generator) - 1
    for slot in range(12):
        torch.testing.assert_close(compiled.play(raw[slot]), plain.play(raw[slot]), rtol=1e-4, atol=1e-6)
