"""Several cells, whatever the world and the decisions: constraints hold in each, and every user has one cell."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.metrics import slot_metrics
from lightning_t2drl.system.scenario_config import ScenarioConfig, build_scenario
from tests.properties.test_constraints import asked_cache, raw_allocation, scenarios

EXAMPLES = 120
WORLDS, SLOTS = 3, 4


@st.composite
def several(draw):
    values = draw(scenarios())
    cells, users = draw(st.integers(1, 7)), values["users"]
    low = draw(st.integers(1, users))
    active = draw(st.none() | st.just([low, draw(st.integers(low, users))]))
    departure = draw(st.sampled_from([0.0, 0.5, 1.0]))
    some_absent = active is not None or departure > 0  # else there is nobody to arrive, and the scenario says so
    return values | {
        "cells": cells,
        "active_users": active,
        "arrival_rate": draw(st.sampled_from([0.0, 0.5, 1.0])) if some_absent else 0.0,
        "departure_rate": departure,
        "site_distance": draw(st.sampled_from([1.0, 400.0, 1e5])),
        "sites_m": draw(st.none() | st.just([[5.0, 5.0]] * cells)),  # all at one place
        "reuse": draw(st.sampled_from([1, 3, 5])),
        "hysteresis_db": draw(st.sampled_from([0.0, 3.0])),
        "handover_delay": draw(st.sampled_from([0.0, 2.0, 1e4])),
        "edge_link_mbps": draw(st.sampled_from([None, 1e-2, 200.0])),
        "shadowing_db": draw(st.sampled_from([0.0, 8.0, 30.0])),
        "popularity_scope": draw(st.sampled_from(["shared", "per_cell"])),
        "popularity_observation": draw(st.sampled_from(["state", "probabilities", "frequencies"])),
    }


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    several(),
    st.integers(0, 2**31),
    st.sampled_from(["all", "none", "random"]),
    st.sampled_from(["random", "ties", "corners", "huge", "one takes all", "nothing", "everything", "tiny"]),
)
def test_constraints_hold_in_every_cell(values, seed, cache_kind, kind):
    scenario = build_scenario(ScenarioConfig(**values))
    cells, users = scenario.cells, scenario.users
    generator = torch.Generator().manual_seed(seed)
    env = EdgeAIGCEnv(scenario, WORLDS, seed)
    before = env.observe()
    for _ in range(SLOTS):
        env.latch(asked_cache(cache_kind, (WORLDS, cells, scenario.models), generator))
        after = env.play(raw_allocation(kind, (WORLDS, cells, users, 2), generator))
        served, attached = after["served"], before["attached"]
        one_each = attached.sum(1)
        assert one_each.max() <= 1
        if scenario.everyone_present:
            assert (one_each == 1).all()
        assert (after["cache"] * scenario.model_storage).sum(-1).max() <= scenario.storage_capacity * (1 + 1e-9)
        shares = served["shares"]
        assert shares.min() >= 0 and shares.sum(-2).max() <= 1 + 1e-5
        assert not shares[~attached].any() and not shares[..., 1][~served["hit"]].any()
        for name, value in served.items():
            assert not value[~attached].any(), name
        assert served["utility"].min() >= -1 - scenario.deadline_penalty - 1e-4 and served["utility"].max() <= 1 + 1e-4
        for name, value in after.items(include_nested=True, leaves_only=True):
            assert not value.isnan().any(), name
        for value in (after["load"], after["reward", "frame"], *slot_metrics(scenario, served, attached).values()):
            assert torch.isfinite(value).all()
        before = after
