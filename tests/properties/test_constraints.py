"""Whatever the world, its state and the decisions: every constraint holds in what was executed, and nothing is NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.system.scenario_config import ScenarioConfig, ServiceConfig, build_scenario

EXAMPLES = 300
WORLDS, SLOTS = 3, 4


def decades(low, high):
    return st.floats(math.log10(low), math.log10(high)).map(lambda exponent: 10.0**exponent)


def per_model(values, models):
    return values | st.lists(values, min_size=models, max_size=models)


@st.composite
def services(draw, models):
    return {
        "floor_steps": draw(per_model(st.floats(0, 100), models)),
        "full_steps": draw(per_model(st.floats(101, 500), models)),
        "best_metric": draw(per_model(st.floats(0, 50), models)),  # lower is better,
        "worst_metric": draw(per_model(st.floats(-100, -1) | st.floats(51, 200), models)),  # or higher is
        "seconds_per_step": draw(per_model(st.floats(0.01, 1), models)),
    }


@st.composite
def scenarios(draw):
    models, states = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    storage = draw(st.lists(decades(0.1, 30), min_size=models, max_size=models))
    stay = draw(st.floats(0, 1)) if states > 1 else 1.0
    moves = [[stay if i == j else (1 - stay) / max(states - 1, 1) for j in range(states)] for i in range(states)]
    return {
        "users": draw(st.integers(1, 12)),
        "slots_per_frame": draw(st.integers(1, SLOTS)),
        "frames_per_episode": draw(st.integers(1, 3)),
        "model_storage_gb": storage,
        "storage_capacity_gb": min(storage) + draw(st.just(1.0) | st.floats(0, 1)) * (sum(storage) - min(storage)),
        "zipf_skewness": draw(st.lists(st.floats(0, 5), min_size=states, max_size=states)),
        "popularity_transition": moves,
        "popularity_observation": draw(st.sampled_from(["state", "frequencies"])),
        "ranking": draw(st.sampled_from(["fixed", "shuffled"])),
        "bandwidth_mhz": draw(decades(1e-3, 1e4)),
        "backhaul_mbps": draw(decades(1e-2, 1e5)),
        "step_budget": draw(decades(1, 1e5)),
        "deadline": draw(decades(0.1, 1e3)),
        "deadline_penalty": draw(st.floats(0, 10)),
        "switch_cost_per_gb": draw(st.floats(0, 1)),
        "alpha": draw(st.floats(0, 1)),
        "min_distance": draw(st.floats(1, 100)),
        "speed_deviation": draw(st.floats(0, 50)),
        "service": ServiceConfig(**draw(services(models))),
    }


def raw_allocation(kind, shape, generator):
    uniform = torch.rand(shape, generator=generator) * 6 - 3
    return {
        "random": uniform,
        "ties": torch.zeros(shape) + uniform[..., :1, :1],
        "corners": uniform.sign(),
        "huge": uniform.sign() * 1e30,
        "one takes all": torch.where(torch.rand(shape, generator=generator) < 0.2, 1.0, -1.0),
        "nothing": torch.full(shape, -1.0),
        "everything": torch.full(shape, 1.0),
        "tiny": uniform * 1e-30,
    }[kind]


def asked_cache(kind, shape, generator):
    whole = torch.ones(shape, dtype=torch.bool)
    return {"all": whole, "none": ~whole, "random": torch.rand(shape, generator=generator) < 0.5}[kind]


def executed(scenario, before, after):
    """Shares of bandwidth and steps, [N, U] each, from the delays that the environment reports."""
    s, served = scenario, after["served"].double()
    efficiency = [
        torch.log2(1 + power * before["gain"].double() / (s.noise_density * s.bandwidth))
        for power in (s.user_power, s.station_power)
    ]
    alone = sum(bits.double() / (s.bandwidth * e) for bits, e in zip(
        (before["input_bits"], before["output_bits"]), efficiency, strict=True))  # fmt: skip
    request = before["request"]
    steps = (served["generation_delay"] - s.base_seconds.double()[request]) / s.seconds_per_step.double()[request]
    return alone / served["access_delay"], steps


@pytest.mark.parametrize("cache_kind", ["all", "none", "random"])
def test_constraints_hold_and_nothing_is_nan(cache_kind, capsys):
    ran = hits = misses = 0

    @settings(max_examples=EXAMPLES // 3, deadline=None, derandomize=True)
    @given(
        scenarios(),
        st.integers(0, 2**31),
        st.sampled_from(["random", "ties", "corners", "huge", "one takes all", "nothing", "everything", "tiny"]),
    )
    def check(values, seed, kind):
        nonlocal ran, hits, misses
        scenario = build_scenario(ScenarioConfig(**values))
        generator = torch.Generator().manual_seed(seed)
        env = EdgeAIGCEnv(scenario, WORLDS, seed)
        for _ in range(SLOTS):
            cache = asked_cache(cache_kind, (WORLDS, 1, scenario.models), generator)
            raw = raw_allocation(kind, (WORLDS, 1, scenario.users, 2), generator)
            before = env.latch(cache)
            after = env.play(raw)
            assert (after["cache"] * scenario.model_storage).sum(-1).max() <= scenario.storage_capacity * (1 + 1e-9)
            hit = after["served", "hit"]
            assert torch.equal(hit, after["cache"].gather(-1, before["request"]))
            bandwidth, steps = executed(scenario, before, after)
            assert bandwidth.min() >= 0 and bandwidth.sum(-1).max() <= 1 + 1e-4
            slack = 1e-6 * after["served", "generation_delay"].max() / scenario.seconds_per_step.min() * scenario.users
            assert steps.min() >= -slack
            assert torch.where(hit, steps, 0.0).sum(-1).max() <= scenario.step_budget * (1 + 1e-5) + slack
            utility = after["served", "utility"]
            assert utility.min() >= -1 - scenario.deadline_penalty - 1e-4 and utility.max() <= 1 + 1e-4
            for name, value in after.items(include_nested=True, leaves_only=True):
                assert not value.isnan().any(), name
            assert torch.isfinite(after["reward", "frame"]).all()
            hits, misses = hits + int(hit.sum()), misses + int((~hit).sum())
        ran += 1

    check()
    assert ran >= EXAMPLES // 3
    assert misses > 0 and (hits == 0) == (cache_kind == "none")
    with capsys.disabled():
        print(f"\n{ran} examples of {WORLDS} worlds x {SLOTS} slots, cache {cache_kind}: {hits} hits, {misses} misses")
