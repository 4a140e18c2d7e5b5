"""Scenarios: units, provenance, overrides, and one clear line for each thing that cannot be."""

import pytest
import torch

from lightning_t2drl.errors import UserError
from lightning_t2drl.system import load_scenario


def test_paper_in_si_units():
    s = load_scenario("paper")
    assert (s.frames_per_episode, s.slots_per_frame, s.cells, s.users, s.models) == (10, 10, 1, 10, 10)
    assert s.storage_capacity == 20 * 8e9
    assert s.model_storage.tolist() == [c * 8e9 for c in (4.3, 6.9, 2.1, 5.2, 3.4, 7.7, 2.6, 4.9, 3.1, 6.0)]
    assert s.input_bits == s.output_bits == (40e6, 80e6)
    assert (s.bandwidth, s.backhaul_rate, s.step_budget) == (20e6, 50e6, 1000.0)
    assert s.user_power == pytest.approx(0.19953, rel=1e-4) and s.station_power == pytest.approx(19.953, rel=1e-4)
    assert s.noise_density == pytest.approx(3.981e-21, rel=1e-3) and s.rician_factor == pytest.approx(3.981, rel=1e-3)
    assert (s.alpha, s.deadline, s.deadline_penalty, s.slot_duration) == (0.5, 60.0, 0.5, 60.0)
    assert s.popularity_change_every == 10
    assert torch.equal(s.request_probability.argmax(-1), torch.zeros(3, dtype=torch.int64))


def test_several_cells_in_si_units():
    s = load_scenario(
        "paper", cells=3, users=30, site_distance=500.0, edge_link_rate=2e8, reuse=3, active_users=[5, 30]
    )
    assert (s.cells, s.edge_link_rate, s.cell_bandwidth, s.active_users) == (3, 2e8, 20e6 / 3, (5, 30))
    torch.testing.assert_close(s.sites[2], torch.tensor([250.0, 433.0127]))
    assert s.area_radius == pytest.approx(250 + 500 / 3**0.5)
    assert load_scenario("paper", cells=2, sites_m=[[0, 0], [3, 4]]).sites.tolist() == [[0, 0], [3, 4]]
    assert load_scenario("paper", edge_link_mbps=200).edge_link_rate == 2e8
    assert load_scenario("paper", edge_link_rate=None).edge_link_rate is None
    assert s.to("cpu") == s and load_scenario("paper").area_radius == 250.0


def test_drift_shuffles_the_ranking():
    s = load_scenario("drift")
    assert (s.models, s.popularity_states, s.storage_capacity) == (12, 4, 15 * 8e9)
    assert len(set(s.request_probability.argmax(-1).tolist())) > 1
    assert s.request_probability.sum(-1).tolist() == pytest.approx([1.0] * 4)
    assert s != load_scenario("drift", ranking_seed=1)


def test_si_overrides_and_config_keys_agree():
    a = load_scenario(
        "paper", bandwidth=10e6, storage_capacity=15 * 8e9, backhaul_rate=1e8, user_power=0.1, switch_cost=1e-12
    )
    b = load_scenario("paper", bandwidth_mhz=10, storage_capacity_gb=15, backhaul_mbps=100, user_power_dbm=20,
                      switch_cost_per_gb=8e-3)  # fmt: skip
    for key, value in a.as_dict().items():
        assert (
            value == pytest.approx(b.as_dict()[key], rel=1e-9)
            if isinstance(value, float)
            else value == b.as_dict()[key]
        )
    assert load_scenario("paper", full_steps=150).full_steps.tolist() == [150.0] * 10
    several = load_scenario("paper", full_steps=150, floor_steps=50, service={"base_seconds": 1.0})
    assert [v[0].item() for v in (several.full_steps, several.floor_steps, several.base_seconds)] == [150, 50, 1]
    assert several.seconds_per_step[0].item() == pytest.approx(0.18)
    assert load_scenario("paper") == load_scenario("paper")


@pytest.mark.parametrize("size", [{"users": 1}, {"model_storage_gb": [3.0]}, {"slots_per_frame": 1}, {"frames_per_episode": 1},
                                  {"zipf_skewness": [1.0], "popularity_transition": [[1.0]]}])  # fmt: skip
def test_smallest_sizes_work(size):
    from lightning_t2drl.envs import EdgeAIGCEnv

    env = EdgeAIGCEnv(load_scenario("paper", **size), 2)
    assert torch.isfinite(env.rollout(4, break_when_any_done=False)["next", "cells", "reward", "slot"]).all()


BAD = {
    "nonsense": {"nonsense": 1},
    "users": {"users": 0},
    "users ": {"users": 2.5},
    "users  ": {"users": "many"},
    "cells": {"cells": 0},
    "cells ": {"cells": 1001},
    "reuse": {"reuse": 0},
    "site_distance": {"site_distance": 0.0},
    "sites_m": {"cells": 2, "sites_m": [[0, 0]]},
    "sites_m ": {"sites_m": [[0, 0, 0]]},
    "sites_m  ": {"sites_m": [[0, float("nan")]]},
    "hysteresis_db": {"hysteresis_db": -1.0},
    "handover_delay": {"handover_delay": float("inf")},
    "edge_link_mbps": {"edge_link_mbps": 0.0},
    "edge_link_rate": {"edge_link_rate": -1.0},
    "shadowing_db": {"shadowing_db": 31.0},
    "shadowing_memory": {"shadowing_memory": 1.5},
    "active_users": {"active_users": [5, 11]},
    "active_users ": {"active_users": [6, 5]},
    "active_users  ": {"active_users": [5]},
    "active_users   ": {"active_users": [0, 5]},
    "active_users_spread": {"active_users_spread": "even"},
    "arrival_rate": {"arrival_rate": 2.0},
    "departure_rate": {"departure_rate": -0.1},
    "popularity_scope": {"popularity_scope": "mine"},
    "alpha": {"alpha": 1.1},
    "alpha ": {"alpha": float("nan")},
    "alpha  ": {"alpha": None},
    "deadline": {"deadline": float("inf")},
    "radius": {"radius": -1.0},
    "min_distance": {"min_distance": 250.0},
    "slot_duration": {"slot_duration": float("nan")},
    "popularity_change_every": {"popularity_change_every": 0},
    "ranking": {"ranking": "alphabetic"},
    "popularity_observation": {"popularity_observation": "all"},
    "input_mb": {"input_mb": [10.0, 5.0]},
    "output_mb": {"output_mb": [5.0]},
    "model_storage_gb": {"model_storage_gb": 5},
    "model_storage_gb ": {"model_storage_gb": [1.0, 0.0]},
    "storage_capacity_gb": {"storage_capacity_gb": 2.0},
    "zipf_skewness": {"zipf_skewness": []},
    "popularity_transition": {"zipf_skewness": [1.0]},
    "popularity_transition ": {"popularity_transition": [[0.5, 0.5, 0.1]] * 3},
    "service.full_steps": {"full_steps": [170.0, 170.0]},
    "service.full_steps ": {"full_steps": 60.0000001},  # equal in float32
    "service.base_seconds": {"base_seconds": "long"},
    "service.best_metric": {"best_metric": 110.0},
    "service.nonsense": {"service": {"nonsense": 1}},
    "bandwidth": {"bandwidth": "wide"},
    "model_storage": {"model_storage": [8e9, None]},
    "user_power": {"user_power": 0.0},
    "user_power ": {"user_power": "strong"},
}


@pytest.mark.parametrize(("key", "override"), BAD.items())
def test_what_cannot_be_is_one_line_that_names_the_key(key, override):
    with pytest.raises(UserError) as error:
        load_scenario("paper", **override)
    assert str(error.value).startswith(f"env.{key.strip()}: ") and "\n" not in str(error.value)


def test_an_unknown_scenario_names_those_there_are():
    with pytest.raises(UserError, match=r"env=nowhere: no such scenario; there are cells3.*drift.*paper"):
        load_scenario("nowhere")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defaults: [other]\n", r"its defaults lead back to itself"),
        ("defaults: 3\n", r"its defaults are no list, such as \[paper, _self_\]$"),
        ("users: ${nope}\n", r"users: Interpolation key 'nope' not found$"),
        ("users: ???\n", r"users: Missing mandatory value: users$"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own_is_one_line(text, line, tmp_path):
    (tmp_path / "other.yaml").write_text("defaults: [mine]\n")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=line) as raised:
        load_scenario(tmp_path / "mine.yaml")
    assert str(raised.value).startswith("env=") and "\n" not in str(raised.value)


def test_nobody_arrives_where_everybody_is_present():
    with pytest.raises(UserError, match=r"env.arrival_rate: everybody is present"):
        load_scenario("paper", arrival_rate=0.2)
    assert load_scenario("paper", arrival_rate=0.2, departure_rate=0.1).arrival_rate == 0.2
