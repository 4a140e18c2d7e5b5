"""The policies that ship: small, plain, and good at loads near and far from those they were trained with."""

import json
from pathlib import Path

import pytest

from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.run.api import load_policy
from lightning_t2drl.run.evaluate import REFERENCES

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SHORT = ("env.active_users=null", "env.frames_per_episode=2")


def test_they_are_small():
    files = list(POLICIES.glob("*/*.ckpt"))
    assert files and all(file.stat().st_size <= 2**20 for file in files)


@pytest.mark.parametrize(("users", "episodes"), [(5, 8), (20, 4), (80, 4), (200, 2)])
def test_any_load_is_above_popular_caches_with_the_exact_allocation_at_any_load(users, episodes):
    policy = load_policy(POLICIES / "t2drl-any-load", *SHORT, f"env.users={users}")
    ours = evaluate(policy.scenario, policy.cacher, policy.allocator, episodes, 1)["utility"].mean()
    rivals = PopularCacher(policy.scenario, PopularConfig()), ExactAllocator(policy.scenario, ExactConfig())
    assert ours > evaluate(policy.scenario, *rivals, episodes, 1)["utility"].mean()


@pytest.mark.parametrize(
    ("name", "env", "margin"),
    [("t2drl-cells", "cells3", 0.1), ("t2drl-cells", "cells7", 0.1), ("t2drl-mixed", "mixed", 0.04)],
)
def test_the_others_are_far_above_random_caching_where_they_are_meant_for(name, env, margin):
    policy = load_policy(POLICIES / name, f"env={env}", "env.frames_per_episode=2")
    ours = evaluate(policy.scenario, policy.cacher, policy.allocator, 8, 1)["utility"].mean()
    random = evaluate(policy.scenario, *REFERENCES["rcars"](policy.scenario), 8, 1)["utility"].mean()
    assert ours > random + margin


def test_a_shipped_policy_is_no_run(run_train, tmp_path):
    checkpoint = next((POLICIES / "t2drl-any-load").glob("*.ckpt"))
    with pytest.raises(UserError, match="the checkpoint holds a policy, not a run"):
        run_train(f"resume={checkpoint}", output_dir=tmp_path)


def test_one_cell_of_several_is_explained_from_what_it_is_told_of_the_others():
    policy = load_policy(POLICIES / "t2drl-cells")
    advice = policy.explain(POLICIES.parent / "examples" / "slot_cells.json")
    assert 98 < advice["share_of_bound"] <= 100.01 and len(advice["users"]) == 8
    louder = policy.explain(
        json.loads((POLICIES.parent / "examples" / "slot_cells.json").read_text())
        | {"uplink_interference": 2e-10, "cache": advice["cache"]}
    )
    assert louder["bound"] < advice["bound"]
