"""The slot bound is never beaten, is close to what is achieved, and agrees with solvers where they apply."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp, minimize

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.system import all_caches, load_scenario, serve
from lightning_t2drl.system.bounds import oracle_caches, slot_bound
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.world import advance, draw_noise, initial_state

KEYS = ("request", "input_bits", "output_bits", "gain")


def sample(scenario, count, seed=0, fade=1.0):
    generator = torch.Generator().manual_seed(seed)
    world = initial_state(scenario, count, generator)
    slot = {key: world[key][:, 0].clone() for key in KEYS}
    deep = torch.rand(slot["gain"].shape, generator=generator) < 0.3
    slot["gain"] = torch.where(deep, slot["gain"] * fade, slot["gain"])
    cache = torch.rand(count, scenario.models, generator=generator) < 0.5
    return slot, cache


def solve(scenario, slot, cache, **more):
    return slot_bound(scenario, *(slot[key] for key in KEYS), cache, **more)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.5, 5.0]),
    st.sampled_from([1.0, 1e-2, 1e-4, 1e-7]),
    st.sampled_from([100.0, 200.0, 340.0, 1000.0]),
    st.integers(0, 10_000),
)
def test_brute_force_never_beats_the_bound(users, alpha, penalty, fade, budget, seed):
    scenario = load_scenario("paper", users=users, alpha=alpha, deadline_penalty=penalty, step_budget=budget)
    slot, cache = sample(scenario, 3, seed, fade)
    found = solve(scenario, slot, cache)
    shares = [np.linspace(0, 1, 41), np.linspace(0, 1, 21), np.linspace(0, 1, 9)][users - 1]
    steps = [0.0, 70.0, 100.0, 140.0, 170.0]
    grid_b = [b for b in itertools.product(shares, repeat=users) if abs(sum(b) - 1) < 1e-9]  # more never hurts
    grid_x = [x for x in itertools.product(steps, repeat=users) if sum(x) <= budget]
    b = torch.tensor(grid_b, dtype=torch.float32)[:, None, None]
    x = torch.tensor(grid_x, dtype=torch.float32)[None, :, None]
    inputs = [slot[key][None, None].expand(len(grid_b), len(grid_x), 3, -1) for key in KEYS]
    shape = inputs[0].shape
    held = cache[None, None].expand(*shape[:3], -1)
    best = serve(scenario, *inputs, held, b.expand(shape), x.expand(shape))["utility"].mean(-1).amax((0, 1))
    assert (best <= found["bound"] + 2e-6).all()
    assert (found["achieved"] <= found["bound"] + 2e-6).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.sampled_from(["paper", "drift"]), st.sampled_from([1.0, 1e-3]), st.integers(0, 10_000))
def test_the_allocation_is_feasible_and_achieves_what_it_says(users, name, fade, seed):
    scenario = load_scenario(name, users=users)
    slot, cache = sample(scenario, 8, seed, fade)
    found = solve(scenario, slot, cache)
    assert (found["bandwidth"] >= 0).all() and (found["bandwidth"].sum(-1) <= 1 + 1e-5).all()
    assert (found["steps"] >= 0).all() and (found["steps"].sum(-1) <= scenario.step_budget * (1 + 1e-5)).all()
    served = serve(scenario, *(slot[key] for key in KEYS), cache, found["bandwidth"], found["steps"])
    torch.testing.assert_close(served["utility"].mean(-1), found["achieved"], rtol=1e-5, atol=1e-6)
    equal = serve(scenario, *(slot[key] for key in KEYS), cache, torch.full_like(slot["gain"], 1 / users),
                  torch.full_like(slot["gain"], scenario.step_budget / users))  # fmt: skip
    assert (equal["utility"].mean(-1) <= found["bound"] + 2e-6).all()


SEVERAL = ("attached", "uplink_interference", "downlink_interference", "handover", "nearby")


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([100.0, 200.0, 340.0]), st.sampled_from([2, 3]),
       st.sampled_from([None, 2e8]), st.integers(0, 10_000))  # fmt: skip
def test_brute_force_never_beats_the_bound_of_several_cells(alpha, budget, cells, rate, seed):
    scenario = load_scenario("paper", cells=cells, users=4, alpha=alpha, step_budget=budget, edge_link_rate=rate,
                             bandwidth=200e6, handover_delay=5.0, active_users=[2, 4])  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    slot = initial_state(scenario, 2, generator)
    slot = advance(scenario, slot, draw_noise(scenario, 2, generator))
    cache = torch.rand(2, cells, scenario.models, generator=generator) < 0.4
    slot["nearby"] = held_elsewhere(cache)
    more = {key: slot[key] for key in SEVERAL}
    found = solve(scenario, slot, cache, **more)
    assert not found["bandwidth"][~slot["attached"]].any() and not found["steps"][~slot["attached"]].any()
    b = torch.tensor([b for b in itertools.product(np.linspace(0, 1, 9), repeat=4) if sum(b) == 1], dtype=torch.float32)
    x = torch.tensor([x for x in itertools.product([0.0, 70.0, 100.0, 140.0, 170.0], repeat=4) if sum(x) <= budget])
    shape = (len(b), len(x))
    b, x = b[:, None].expand(*shape, 4), x[None].expand(*shape, 4)
    for n, c in itertools.product(range(2), range(cells)):
        one = {key: slot[key][n, c].expand(*shape, *slot[key][n, c].shape) for key in (*KEYS, *SEVERAL)}
        served = serve(scenario, **one, cache=cache[n, c].expand(*shape, -1), bandwidth=b, steps=x)
        best = served["utility"].sum(-1).amax() / slot["attached"][n, c].sum().clamp_min(1)
        assert best <= found["bound"][n, c] + 2e-6
        assert found["achieved"][n, c] <= found["bound"][n, c] + 2e-6


def test_it_is_tight_in_several_cells():
    scenario = load_scenario("paper", cells=7, users=60, active_users=[30, 60], edge_link_rate=2e8, bandwidth=80e6)
    generator = torch.Generator().manual_seed(0)
    slot = initial_state(scenario, 30, generator)
    cache = torch.tensor([m in (0, 1, 2, 4, 6) for m in range(10)]).expand(30, 7, -1)
    slot["nearby"] = held_elsewhere(cache)
    found = solve(scenario, slot, cache, **{key: slot[key] for key in SEVERAL})
    served = serve(scenario, *(slot[key] for key in KEYS), cache, found["bandwidth"], found["steps"],
                   **{key: slot[key] for key in SEVERAL})  # fmt: skip
    mean = served["utility"].sum(-1) / slot["attached"].sum(-1).clamp_min(1)
    torch.testing.assert_close(mean, found["achieved"], rtol=1e-5, atol=1e-6)
    gap = (found["bound"] - found["achieved"]) / found["bound"].abs().clamp_min(0.1)
    assert gap.min() >= -1e-6 and gap.mean() < 1e-3 and gap.median() < 1e-5


def test_each_slot_is_solved_for_itself():
    """Whichever slots, and cells with more users, are solved beside it."""
    scenario = load_scenario("paper", cells=7, users=40, active_users=[20, 40])
    slot = initial_state(scenario, 3, torch.Generator().manual_seed(0))
    cache = torch.tensor([m in (0, 1, 2, 4, 6) for m in range(10)]).expand(3, 7, -1)
    found = solve(scenario, slot, cache, attached=slot["attached"])
    for n, c in itertools.product(range(3), range(7)):
        one = {key: slot[key][n : n + 1, c] for key in (*KEYS, "attached")}
        alone = solve(scenario, one, cache[n : n + 1, c], attached=one["attached"])
        for key in ("bound", "achieved", "bandwidth", "steps"):
            torch.testing.assert_close(found[key][n, c], alone[key][0], rtol=1e-5, atol=1e-6)


def test_it_is_tight_with_a_sensible_cache():
    scenario = load_scenario("paper")
    slot, _ = sample(scenario, 300)
    cache = torch.tensor([m in (0, 1, 2, 4, 6) for m in range(10)]).expand(300, -1)
    found = solve(scenario, slot, cache)
    gap = (found["bound"] - found["achieved"]) / found["bound"]
    assert gap.min() >= -1e-6 and gap.median() < 1e-5 and gap.quantile(0.95) < 1e-3


def test_a_lone_user_gets_the_steps_that_the_deadline_leaves():
    """With the whole band and quality alone at stake, x = min((tau - B2 - a) / B1, A3): closed form, floor to deep."""
    scenario = load_scenario("paper", users=1, alpha=1.0)
    slot, _ = sample(scenario, 200)
    slot["gain"] = torch.logspace(-15, -12, 200).unsqueeze(-1)
    found = solve(scenario, slot, torch.ones(200, 10, dtype=torch.bool))
    left = 60 - 5.74 - access_time(scenario, slot["gain"], slot["input_bits"], slot["output_bits"]).double()
    on_time = ((left / 0.18 - 60) / 110).clamp(0, 1) - 0.5 * (left < 0)
    best = torch.maximum(on_time, torch.tensor(0.5)).squeeze(-1)  # late with full quality costs chi alone
    assert ((best > 0.51) & (best < 0.99)).sum() > 3  # some are held back by the deadline
    assert (found["bound"] >= best - 1e-6).all()
    torch.testing.assert_close(found["bound"].double(), best, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["achieved"].double(), best, rtol=0, atol=1e-4)


def test_users_of_another_cell_change_nothing():
    slot, cache = sample(load_scenario("paper", users=6), 30)
    attached = (torch.arange(6) < 4).expand(30, -1)
    found = solve(load_scenario("paper", users=6), slot, cache, attached=attached)
    alone = solve(load_scenario("paper", users=4), {key: value[:, :4] for key, value in slot.items()}, cache)
    torch.testing.assert_close(found["bound"], alone["bound"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["achieved"], alone["achieved"], rtol=0, atol=1e-6)
    assert not found["bandwidth"][:, 4:].any() and not found["steps"][:, 4:].any()


def test_square_root_law_where_nothing_else_matters():
    scenario = load_scenario("paper", deadline_penalty=0.0, deadline=1e4)  # no deadline in reach, no steps needed
    slot, _ = sample(scenario, 5)
    cache = torch.zeros(5, 10, dtype=torch.bool)
    found = solve(scenario, slot, cache)
    root = access_time(scenario, slot["gain"], slot["input_bits"], slot["output_bits"]).sqrt()
    torch.testing.assert_close(found["bandwidth"], root / root.sum(-1, keepdim=True), rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(found["achieved"], found["bound"], rtol=1e-5, atol=1e-6)


def test_bandwidth_split_against_scipy():
    scenario = load_scenario("paper", users=4, deadline_penalty=0.0)
    slot, _ = sample(scenario, 3, seed=5)
    cache = torch.zeros(3, 10, dtype=torch.bool)
    found = solve(scenario, slot, cache)
    for i in range(3):
        one = {key: slot[key][i].double() if slot[key].is_floating_point() else slot[key][i] for key in KEYS}

        def loss(b, one=one):
            served = serve(scenario, *(one[key] for key in KEYS), cache[0], torch.tensor(b), torch.zeros(4))
            return -served["utility"].mean().item()

        result = minimize(loss, np.full(4, 0.25), bounds=[(1e-3, 1)] * 4, method="SLSQP",
                          constraints={"type": "ineq", "fun": lambda b: 1 - b.sum()})  # fmt: skip
        assert found["achieved"][i].item() == pytest.approx(-result.fun, abs=2e-4)


def test_step_knapsack_against_highs():
    """With bandwidth in abundance and no deadline the slot is the knapsack alone, which HiGHS solves exactly."""
    scenario = load_scenario("paper", users=9, deadline_penalty=0.0, deadline=200.0, bandwidth=20e9, step_budget=700.0,
                             user_power_dbm=150.0, station_power_dbm=150.0,
                             service={"full_steps": [100.0 + 15 * m for m in range(10)]})  # fmt: skip
    slot, _ = sample(scenario, 4, seed=2)
    cache = torch.ones(4, 10, dtype=torch.bool)
    found = solve(scenario, slot, cache, rounds=12)
    for i in range(4):
        m = slot["request"][i]
        floor, full = scenario.floor_steps[m].double().numpy(), scenario.full_steps[m].double().numpy()
        cost = 0.5 * scenario.seconds_per_step[m].double().numpy() / scenario.deadline
        # x = A1 z + y, quality 0.5 y / (A3 - A1), y <= (A3 - A1) z, z in {0, 1}
        objective = np.concatenate((cost * floor, cost - 0.5 / (full - floor)))
        rows = [LinearConstraint(np.concatenate((floor, np.ones(9)))[None], -np.inf, 700.0)]
        rows.append(LinearConstraint(np.hstack((-np.diag(full - floor), np.eye(9))), -np.inf, 0))
        result = milp(objective, constraints=rows, integrality=[1] * 9 + [0] * 9,
                      bounds=Bounds(0, np.concatenate((np.ones(9), full - floor))))  # fmt: skip
        base = 0.5 * (1 - scenario.base_seconds[m].double().numpy() / scenario.deadline)
        best = (base.sum() - result.fun) / 9
        assert found["bound"][i].item() >= best - 1e-4
        assert found["achieved"][i].item() <= best + 1e-4
        assert found["achieved"][i].item() >= best - 0.02


def test_oracle_cache_is_the_best_of_all_in_a_tiny_world():
    scenario = load_scenario("paper", users=3, model_storage_gb=[5.0, 4.0, 3.0, 2.0], storage_capacity_gb=7.0)
    found = oracle_caches(scenario, 128, seed=0)
    assert found.cache.shape == (3, 4)
    subsets, feasible = all_caches(scenario)
    from lightning_t2drl.system.bounds.sampling import sample_slots

    for state in range(3):
        slots = {key: value[:, 0] for key, value in sample_slots(scenario, state, 128, 0).items()}
        each = subsets[feasible].unsqueeze(1).expand(-1, 128, -1)
        many = {key: slots[key].expand(len(each), *slots[key].shape) for key in slots if key != "popularity"}
        values = slot_bound(scenario, **many, cache=each)["bound"].mean(-1)
        assert values.max().item() - found.bound[state].item() < 2e-3
    large = load_scenario("paper", model_storage_gb=[1.0 + 0.2 * m for m in range(14)])
    caches = oracle_caches(large, 16, seed=0).cache
    assert ((caches * large.model_storage).sum(-1) <= large.storage_capacity).all()


@pytest.mark.parametrize("linked", [False, True])
def test_caches_that_differ_in_what_nobody_asks_for_are_bounded_once_and_rightly(linked, monkeypatch):
    from lightning_t2drl.system.bounds import alternatives
    from lightning_t2drl.system.bounds.sampling import sample_slots
    from lightning_t2drl.system.serving import situation

    more = {"cells": 3, "users": 12, "edge_link_mbps": 200.0} if linked else {"users": 3, "active_users": [1, 3]}
    scenario = load_scenario("paper", **more)
    slots = situation(sample_slots(scenario, 1, 40, 5))
    caches = torch.rand(12, 40, scenario.cells, scenario.models, generator=torch.Generator().manual_seed(2)) < 0.4
    nearby = held_elsewhere(caches) if linked else None
    solved = []

    def counted(*args, request, **kwargs):
        solved.append(len(request))
        return slot_bound(*args, request=request, **kwargs)

    monkeypatch.setattr(alternatives, "slot_bound", counted)
    found = alternatives.bounds_of_caches(scenario, slots, caches, nearby)
    monkeypatch.setattr(alternatives, "BITS", 3)  # models in several words
    assert torch.equal(found, alternatives.bounds_of_caches(scenario, slots, caches, nearby))
    each = {key: value.expand(12, *value.shape) for key, value in slots.items()}
    near = {} if nearby is None else {"nearby": nearby}
    torch.testing.assert_close(found, slot_bound(scenario, **each, cache=caches, **near, rounds=0)["bound"])
    assert solved[0] == solved[1] < found.numel() * (0.95 if linked else 0.5)


TINY = {"cells": 3, "users": 9, "model_storage_gb": [4.0, 4.0, 4.0], "storage_capacity_gb": 4.0, "zipf_skewness": [0.5],
        "popularity_transition": [[1.0]], "bandwidth_mhz": 100.0, "alpha": 0.2}  # fmt: skip


def test_the_oracle_caches_of_several_cells_follow_their_own_demand():
    scenario = load_scenario(
        "paper", **TINY | {"zipf_skewness": [3.0], "popularity_scope": "per_cell", "ranking": "shuffled"}
    )
    found = oracle_caches(scenario, 192, seed=0)
    assert found.cache.shape == (3, 1, 3) and found.bound.shape == found.hit_ratio.shape == (3, 1)
    assert torch.equal(found.cache[:, 0].long().argmax(-1), scenario.request_probability[:, 0].argmax(-1))
    assert (found.achieved <= found.bound + 2e-6).all()
    asked = scenario.request_probability[:, 0].amax(-1, keepdim=True)
    torch.testing.assert_close(found.hit_ratio, asked, atol=0.1, rtol=0)
    states = torch.zeros(5, 3, dtype=torch.int64)
    assert torch.equal(found.of(states), found.cache[:, 0].expand(5, -1, -1))


def test_cells_that_cooperate_hold_different_models():
    from lightning_t2drl.system.bounds.cooperation import held, world_score
    from lightning_t2drl.system.bounds.sampling import sample_slots

    alone = load_scenario("paper", **TINY, backhaul_mbps=20.0)
    linked = load_scenario("paper", **TINY, backhaul_mbps=20.0, edge_link_mbps=2000.0)
    told: list[tuple[int, int]] = []
    single = oracle_caches(alone, 64, 0, lambda *told_: told.append(told_)).cache
    assert told == [(turn, 6) for turn in range(1, 7)]  # three cells for themselves, and what each brings
    told.clear()
    joint = oracle_caches(linked, 64, 0, lambda *told_: told.append(told_)).cache
    assert [turn for turn, _ in told] == list(range(1, len(told) + 1)) and told[-1][0] <= told[-1][1] == 24
    assert joint.any(0).all() and not single.any(0).all()
    sample = sample_slots(linked, 0, 64, 1)
    value = {
        name: world_score(linked, sample, held(caches, sample), 0, caches[0])[0]
        for name, caches in (("single", single), ("joint", joint))
    }
    assert value["joint"] > value["single"] + 0.01


def test_a_link_without_power_is_starved_not_nan():
    scenario = load_scenario("paper", user_power_dbm=-300.0, station_power_dbm=-300.0)
    cells = EdgeAIGCEnv(scenario, 2, 0).observe()
    slot = {name: cells[name][:, 0] for name in ("request", "input_bits", "output_bits", "gain", "cache", "attached")}
    found = slot_bound(scenario, **slot)
    assert all(found[name].isfinite().all() for name in ("bound", "achieved", "bandwidth", "steps"))
