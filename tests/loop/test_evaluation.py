"""Evaluation: which worlds are played does not depend on how many."""

import pytest
import torch

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.run.tables import bound_line
from lightning_t2drl.system import load_scenario


def test_the_first_episodes_are_the_same_however_many_are_played():
    scenario = load_scenario("paper", users=7, frames_per_episode=3)
    pair = PopularCacher(scenario, PopularConfig()), EqualAllocator(scenario, EqualConfig())
    few, many, other = (evaluate(scenario, *pair, n, seed)["utility"] for n, seed in ((3, 1), (40, 1), (3, 2)))
    torch.testing.assert_close(few, many[:3], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(few, other).any()


@pytest.mark.parametrize(
    "env",
    [["env=paper", "env.users=4"], ["env=cells3", "env.cells=2", "env.users=5", "env.active_users=[4,5]"]],
    ids=str,
)
def test_the_oracle_comes_with_the_bound_that_nobody_with_its_caches_exceeds(env, run_evaluate, capsys):
    small = [*env, "env.frames_per_episode=1", "env.slots_per_frame=3", "episodes=2", "references=[oracle]"]
    found = run_evaluate(*small, "cacher=popular", "allocator=equal")
    oracle = found["references"]["oracle"]
    bound = oracle["bound"]["mean"]
    assert bound * 0.999 < oracle["total_utility"]["mean"] <= bound * (1 + 1e-6)
    share = 100 * oracle["total_utility"]["mean"] / bound
    assert f"of the bound with the oracle's caches, {bound:.2f}: " in capsys.readouterr().out
    assert f"oracle {share:.2f} %" in bound_line(found)


@pytest.mark.parametrize("changes", [
    {"users": 6, "active_users": [2, 6], "popularity_change_every": 1},
    {"cells": 3, "users": 9, "edge_link_mbps": 200.0, "popularity_observation": "frequencies", "popularity_scope": "per_cell", "ranking": "shuffled"},
], ids=["one", "cells"])  # fmt: skip
def test_the_slots_of_a_frame_decided_at_once_are_those_decided_one_by_one(changes, monkeypatch):
    scenario = load_scenario("paper", frames_per_episode=2, slots_per_frame=4, **changes)

    def played():
        allocator = ExactAllocator(scenario, ExactConfig())
        seen = []
        found = evaluate(
            scenario, RandomCacher(scenario, RandomConfig()), allocator, 3, 1,
            watch=lambda env, slot: slot and seen.append((slot.cells["request"], slot.raw, allocator.bound)),
        )  # fmt: skip
        return found, seen

    monkeypatch.setattr("lightning_t2drl.loop.evaluation.FORESEEN", 3)  # the frame's four in two parts
    (at_once, seen), _ = played(), monkeypatch.setattr(ExactAllocator, "foresees", False)
    one_by_one, seen_before = played()
    torch.testing.assert_close(at_once, one_by_one, equal_nan=True)
    torch.testing.assert_close(seen, seen_before)
    assert len(seen) == 8 and len({float(bound.sum()) for *_, bound in seen}) == 8


def test_what_a_subclass_of_the_exact_allocator_decides_counts():
    class Nothing(ExactAllocator):
        def decide(self, observation, explore=False):
            return torch.full((*observation["request"].shape, 2), -1.0)

    scenario = load_scenario("paper", users=4, frames_per_episode=1, slots_per_frame=2)
    pairs = (cls(scenario, ExactConfig()) for cls in (ExactAllocator, Nothing))
    cacher = PopularCacher(scenario, PopularConfig())
    exact, nothing = (evaluate(scenario, cacher, allocator, 2, 1)["utility"].mean() for allocator in pairs)
    assert exact > nothing + 0.1
