"""Scenarios: units, provenance, overrides, and one clear line for each thing that cannot be."""

import pytest
import torch

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
    assert load_scenario("paper") == load_scenario("paper")


@pytest.mark.parametrize("size", [{"users": 1}, {"model_storage_gb": [3.0]}, {"slots_per_frame": 1}, {"frames_per_episode": 1},
                                  {"zipf_skewness": [1.0], "popularity_transition": [[1.0]]}])  # fmt: skip
def test_smallest_sizes_work(size):
    from lightning_t2drl.envs import EdgeAIGCEnv

    env = EdgeAIGCEnv(load_scenario("paper", **size), 2)
    assert torch.isfinite(env.rollout(4, break_when_any_done=False)["next", "cells", "reward", "slot"]).all()
