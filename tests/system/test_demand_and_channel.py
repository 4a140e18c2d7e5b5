"""Requests, mobility, path loss and fading against closed forms and their own distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.system import load_scenario, stationary_distribution
from lightning_t2drl.system.channel import access_time, path_gain, rician_power, spectral_efficiency
from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.mobility import move, uniform_position
from lightning_t2drl.system.world import advance, draw_noise, initial_state


def test_zipf_by_hand():
    scenario = load_scenario("paper", zipf_skewness=[1.0, 0.0], popularity_transition=[[0.5, 0.5], [0.5, 0.5]],
                             model_storage_gb=[1.0, 1.0, 1.0])  # fmt: skip
    expected = torch.tensor([[6 / 11, 3 / 11, 2 / 11], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(scenario.request_probability, expected)


def test_stationary_distribution_is_fixed_and_known():
    chain = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    torch.testing.assert_close(stationary_distribution(chain), torch.tensor([0.75, 0.25]))
    alternating = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(stationary_distribution(alternating), torch.tensor([0.5, 0.5]))


def test_inverse_cdf_never_leaves_the_support():
    probability = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    uniform = torch.tensor([0.0, 0.1, 0.2999, 0.3001, 0.9999999, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))])
    assert inverse_cdf(probability.cumsum(-1), uniform).tolist() == [1, 1, 1, 3, 3, 3]


def test_requests_and_popularity_follow_their_probabilities():
    scenario = load_scenario("paper", users=200)
    generator = torch.Generator().manual_seed(0)
    state = initial_state(scenario, 400, generator)
    for j in range(3):
        asked = state["request"][state["popularity"][:, 0] == j].flatten()
        share = torch.bincount(asked, minlength=10) / len(asked)
        torch.testing.assert_close(share, scenario.request_probability[j], atol=0.01, rtol=0)
    state["slot"] += 9  # the next slot starts a frame
    following = advance(scenario, state, draw_noise(scenario, 400, generator))
    stayed = (following["popularity"] == state["popularity"]).float().mean()
    assert stayed.item() == pytest.approx(0.8, abs=0.06)
    within = advance(scenario, following, draw_noise(scenario, 400, generator))
    assert torch.equal(within["popularity"], following["popularity"])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 500))
def test_users_never_leave_the_disc(seed, memory, deviation, duration, speed):
    scenario = load_scenario("paper", mobility_memory=memory, speed_deviation=deviation, slot_duration=duration,
                             mean_speed=speed)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = initial_state(scenario, 3, generator)
    for _ in range(3):
        state = advance(scenario, state, draw_noise(scenario, 3, generator))
        distance = torch.linalg.vector_norm(state["position"], dim=-1)
        assert (distance <= scenario.radius * (1 + 1e-5)).all()
        assert all(torch.isfinite(state[key]).all() for key in ("velocity", "gain"))


def test_reflection_by_hand():
    scenario = load_scenario("paper", mobility_memory=1.0, speed_deviation=0.0, slot_duration=1.0)
    zero = torch.zeros(1, 2)
    position, velocity, _ = move(scenario, torch.tensor([[240.0, 0.0]]), torch.tensor([[30.0, 5.0]]), zero, zero)
    assert torch.linalg.vector_norm(position).item() == pytest.approx(2 * 250 - math.hypot(270, 5), rel=1e-5)
    assert velocity[0, 0] < 0 and torch.linalg.vector_norm(velocity).item() == pytest.approx(
        math.hypot(30, 5), rel=1e-5
    )


def test_mobility_keeps_its_stationary_spread():
    scenario = load_scenario("paper", radius=1e9, users=400)
    generator = torch.Generator().manual_seed(1)
    state = initial_state(scenario, 50, generator)
    for _ in range(5):
        state = advance(scenario, state, draw_noise(scenario, 50, generator))
    assert state["velocity"].std().item() == pytest.approx(1.5, rel=0.03)


def test_positions_are_uniform_over_the_ring():
    scenario = load_scenario("paper", min_distance=100.0)
    uniform = torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0))
    distance = torch.linalg.vector_norm(uniform_position(scenario, uniform), dim=-1)
    assert distance.min() >= 100 * (1 - 1e-6) and distance.max() <= 250 * (1 + 1e-6)
    inner = (distance < 175).float().mean().item()
    assert inner == pytest.approx((175**2 - 100**2) / (250**2 - 100**2), abs=0.01)


def test_link_budget_by_hand():
    scenario = load_scenario("paper")
    gain = path_gain(scenario, torch.tensor([100.0, 1.0]))
    assert gain[0].log10().item() * -10 == pytest.approx(128.1 - 37.6, abs=1e-3)
    assert gain[1].log10().item() * -10 == pytest.approx(128.1 - 75.2, abs=1e-3)  # clamped to 10 m
    up, down = spectral_efficiency(scenario, torch.tensor([1e-11]))
    noise = 10 ** (-17.4) / 1000 * 20e6
    assert up.item() == pytest.approx(math.log2(1 + 10**-0.7 * 1e-11 / noise), rel=1e-5)
    assert down.item() == pytest.approx(math.log2(1 + 10**1.3 * 1e-11 / noise), rel=1e-5)
    time = access_time(scenario, torch.tensor([1e-11]), torch.tensor([6e7]), torch.tensor([4e7]))
    assert time.item() == pytest.approx((6e7 / up.item() + 4e7 / down.item()) / 20e6, rel=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.98, 100.0])
def test_fading_has_unit_mean_power_and_the_rician_variance(factor):
    power = rician_power(factor, torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    assert power.mean().item() == pytest.approx(1.0, abs=0.01)
    assert power.var().item() == pytest.approx((1 + 2 * factor) / (1 + factor) ** 2, rel=0.05)
