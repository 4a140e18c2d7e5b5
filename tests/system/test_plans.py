"""Plans of caches against closed forms and every plan there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.errors import UserError
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.bounds import CacheTable, best_held, best_plan, cache_table, oracle_caches
from lightning_t2drl.system.caching import all_caches

TINY = {"model_storage_gb": [5.0, 4.0, 3.0], "storage_capacity_gb": 7.0, "users": 3}
CHAIN = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.0, 0.5]]


def scenario_of(slots, frames, pace, charge):
    """A world in which a GB costs `charge` of a slot's utility, whatever a frame is."""
    keys = {"slots_per_frame": slots, "frames_per_episode": frames, "popularity_change_every": pace}
    return load_scenario("paper", **TINY, popularity_transition=CHAIN, switch_cost_per_gb=charge / slots, **keys)


def table_of(scenario, seed):
    subsets, feasible = all_caches(scenario)
    generator = torch.Generator().manual_seed(seed)
    utility = torch.rand(3, int(feasible.sum()), generator=generator, dtype=torch.float64)
    return CacheTable(subsets[feasible], utility)


def test_where_loading_is_free_the_best_cache_of_each_state_is_the_plan():
    scenario = scenario_of(2, 3, 2, 0.0)
    table = table_of(scenario, 0)
    likely, earned = torch.full((3,), 1 / 3, dtype=torch.float64), 0.0
    for _ in range(3):
        earned += float(likely @ table.utility.amax(-1)) / 3
        likely = likely @ scenario.popularity_transition.double()
    assert best_plan(scenario, table) == pytest.approx(earned)


def test_two_frames_are_planned_as_well_as_by_trying_every_plan():
    scenario = scenario_of(1, 2, 1, 0.05)
    table = table_of(scenario, 1)
    step, sizes = scenario.popularity_transition.double(), scenario.model_storage / 8e9
    ways = range(len(table.caches))

    def charge(before, after):
        return 0.05 * float(((table.caches[after] & ~before) * sizes).sum())

    nothing, best = torch.zeros(3, dtype=torch.bool), 0.0
    for state in range(3):
        plans = []
        for first in ways:
            earned = float(table.utility[state, first]) - charge(nothing, first)
            held = table.caches[first]
            for after in range(3):
                second = max(float(table.utility[after, c]) - charge(held, c) for c in ways)
                earned += float(step[state, after]) * second
            plans.append(earned)
        best += max(plans) / 3
    assert best_plan(scenario, table) == pytest.approx(best / 2)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5), st.sampled_from([1, 2, 4]))
def test_shorter_frames_never_earn_less_and_holding_never_more(seed, charge, pace):
    worth = []
    for slots, frames in ((1, 8), (2, 4), (4, 2), (8, 1)):
        scenario = scenario_of(slots, frames, pace, charge)
        worth.append(best_plan(scenario, table_of(scenario, seed)))
    held = best_held(scenario, table_of(scenario, seed))
    assert all(shorter >= longer - 1e-6 for shorter, longer in itertools.pairwise([*worth, held]))


def test_the_table_has_the_oracles_caches_at_its_top():
    scenario = scenario_of(2, 2, 2, 0.0)
    table, oracle = cache_table(scenario, 64, seed=0), oracle_caches(scenario, 64, seed=0)
    assert torch.equal(table.caches[table.utility.argmax(-1)], oracle.cache)
    with pytest.raises(UserError, match="one cell"):
        cache_table(load_scenario("loads"), 64, seed=0)
