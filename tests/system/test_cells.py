"""Several cells against plain loops: sites, colours, attachment, interference, serving, and worlds that stay what they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.system import (
    ScenarioConfig,
    attach,
    build_scenario,
    interference,
    load_scenario,
    serve,
    station_sites,
)
from lightning_t2drl.system.cells import held_elsewhere, members
from lightning_t2drl.system.channel import path_gain, rician_power
from lightning_t2drl.system.world import advance, draw_noise, initial_state

CLOSE = {"rtol": 1e-5, "atol": 0.0}


def test_sites_stand_on_a_spiral():
    d, h = 400.0, 400 * math.sqrt(3) / 2
    first = [(0, 0), (d, 0), (d / 2, h), (-d / 2, h), (-d, 0), (-d / 2, -h), (d / 2, -h), (2 * d, 0), (1.5 * d, h)]
    torch.testing.assert_close(station_sites(9, d), torch.tensor(first))
    sites = station_sites(61, 1.0)
    apart = torch.cdist(sites, sites) + 10 * torch.eye(61)
    torch.testing.assert_close(apart.amin(-1), torch.ones(61))
    ring = sites.abs().amax(-1)  # rings of 1, 6, 12, 18, 24 stations
    assert [int((torch.linalg.vector_norm(sites, dim=-1) < r + 1e-4).sum()) for r in (0, 1, 2, 3, 4)] == [
        1,
        7,
        19,
        37,
        61,
    ]
    assert ring.max() == 4
    angle = torch.atan2(sites[7:19, 1], sites[7:19, 0]) % (2 * math.pi)
    assert (angle.diff() > 0).all()  # counter-clockwise


def test_three_colours_part_all_neighbours():
    scenario = load_scenario("paper", cells=37, reuse=3)
    apart = torch.cdist(scenario.sites, scenario.sites) / scenario.site_distance
    same = scenario.colours[:, None] == scenario.colours
    assert not same[(apart > 0.5) & (apart < 1.5)].any()
    assert torch.bincount(scenario.colours).tolist() == [13, 12, 12]
    assert load_scenario("paper", cells=5, reuse=4).colours.tolist() == [0, 1, 2, 3, 0]
    placed = load_scenario("paper", cells=4, reuse=3, sites_m=[[0, 0], [1, 0], [2, 0], [3, 0]])
    assert placed.colours.tolist() == [0, 1, 2, 0]


def paper(**keys):
    """As `load_scenario("paper", ...)` in config units, without reading the file."""
    return build_scenario(ScenarioConfig(**keys))


def slot_of(cells, users, seed, crowd):
    """One random slot of several cells, [2, B, U]: gains, serving stations (-1: absent) and members."""
    generator = torch.Generator().manual_seed(seed)
    scenario = paper(cells=cells, users=users)
    sites = scenario.sites.clone()
    position = 500 * torch.randn(2, users, 2, generator=generator)
    if crowd == "one place" and cells > 1:
        sites[1] = sites[0]
    if crowd == "at the stations":
        position = sites[torch.arange(users) % cells].expand(2, -1, -1)
    distance = torch.linalg.vector_norm(position[:, None] - sites[:, None], dim=-1)
    gain = path_gain(scenario, distance) * rician_power(4.0, torch.randn(2, cells, users, 2, generator=generator))
    serving = torch.randint(cells, (2, users), generator=generator)
    if crowd == "one cell":
        serving[:] = cells - 1
    if crowd == "absent":
        serving[torch.rand(2, users, generator=generator) < 0.5] = -1
    return gain, serving


crowds = st.sampled_from(["any", "one place", "at the stations", "one cell", "absent"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 19), st.integers(1, 12), st.sampled_from([1, 3, 4]), crowds, st.integers(0, 10_000))
def test_interference_against_a_loop(cells, users, reuse, crowd, seed):
    scenario = paper(cells=cells, users=users, reuse=reuse)
    gain, serving = slot_of(cells, users, seed, crowd)
    attached = members(serving, cells)
    uplink, downlink = interference(scenario, gain, attached)
    assert uplink.shape == (2, cells) and downlink.shape == (2, cells, users)
    colour = scenario.colours.tolist()
    for n in range(2):
        of = [[u for u in range(users) if serving[n, u] == c] for c in range(cells)]
        for c in range(cells):
            others = [o for o in range(cells) if o != c and colour[o] == colour[c] and of[o]]
            up = sum(sum(scenario.user_power * gain[n, c, v].item() for v in of[o]) / len(of[o]) for o in others)
            assert uplink[n, c].item() == pytest.approx(up, rel=1e-5, abs=0)
            for u in range(users):
                down = sum(scenario.station_power * gain[n, o, u].item() for o in others)
                assert downlink[n, c, u].item() == pytest.approx(down, rel=1e-5, abs=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 19), st.integers(1, 12), st.sampled_from([0.0, 1.0, 6.0]), crowds, st.integers(0, 10_000))
def test_attachment_against_a_loop(cells, users, hysteresis, crowd, seed):
    gain, before = slot_of(cells, users, seed, crowd)
    serving, handover = attach(gain, before, hysteresis)
    fresh, none = attach(gain, None, hysteresis)
    assert not none.any() and torch.equal(fresh, gain.argmax(1))
    for n in range(2):
        for u in range(users):
            strongest = max(range(cells), key=lambda b: (gain[n, b, u].item(), -b))
            old = int(before[n, u])
            lead = 10 * math.log10(gain[n, strongest, u].item() / gain[n, old, u].item())
            if old >= 0 and abs(lead - hysteresis) < 1e-4 and lead != 0:
                continue  # on the edge float32 decides
            moves = old >= 0 and lead > hysteresis
            assert serving[n, u] == (strongest if moves or old < 0 else old)
            assert handover[n, u] == moves


def loop_serve(s, slot, b, x, n, c):
    """One cell's slot as the specification words it, user by user."""
    width = s.bandwidth / s.reuse
    noise = s.noise_density * width
    who = [u for u in range(s.users) if slot["attached"][n, c, u]]
    hit = {u: bool(slot["cache"][n, c, slot["request"][n, c, u]]) for u in who}
    near = {u for u in who if not hit[u] and s.edge_link_rate and slot["nearby"][n, c, slot["request"][n, c, u]]}
    far = [u for u in who if not hit[u] and u not in near]
    out = {}
    for u in who:
        m, gain = int(slot["request"][n, c, u]), slot["gain"][n, c, u].item()
        d_in, d_out = slot["input_bits"][n, c, u].item(), slot["output_bits"][n, c, u].item()
        e_up = math.log2(1 + s.user_power * gain / (noise + slot["uplink_interference"][n, c].item()))
        e_dn = math.log2(1 + s.station_power * gain / (noise + slot["downlink_interference"][n, c, u].item()))
        steps = x[n, c, u].item() if hit[u] else s.full_steps[m].item()
        a1, a3 = s.floor_steps[m].item(), s.full_steps[m].item()
        delay = (d_in / e_up + d_out / e_dn) / (width * b[n, c, u].item())
        delay += s.seconds_per_step[m].item() * steps + s.base_seconds[m].item()
        if u in near:
            delay += (d_in + d_out) * len(near) / s.edge_link_rate
        elif not hit[u]:
            delay += (d_in + d_out) * len(far) / s.backhaul_rate
        delay += s.handover_delay * bool(slot["handover"][n, c, u])
        quality = min(max((steps - a1) / (a3 - a1), 0), 1)
        late = delay > s.deadline
        latency = max(1 - delay / s.deadline, -1)
        utility = s.alpha * quality + (1 - s.alpha) * latency - s.deadline_penalty * late
        out[u] = {"delay": delay, "quality": quality, "utility": utility, "nearby": u in near}
    return out


@pytest.mark.parametrize("reuse", [1, 3])
@pytest.mark.parametrize("rate", [None, 2e8])
@pytest.mark.parametrize("cells", [2, 7, 19])
def test_serving_against_a_loop(cells, rate, reuse):
    s = load_scenario("paper", cells=cells, users=2 * cells, reuse=reuse, edge_link_rate=rate, handover_delay=7.0,
                      bandwidth=400e6, active_users=[cells, 2 * cells])  # fmt: skip
    generator = torch.Generator().manual_seed(cells)
    slot = initial_state(s, 3, generator)
    slot = advance(s, slot, draw_noise(s, 3, generator))
    slot["cache"] = torch.rand(3, cells, s.models, generator=generator) < 0.3
    slot["nearby"] = held_elsewhere(slot["cache"])
    for n in range(3):
        for c in range(cells):
            others = [slot["cache"][n, o] for o in range(cells) if o != c]
            assert torch.equal(slot["nearby"][n, c], torch.stack(others).any(0))
    b = torch.rand(3, cells, s.users, generator=generator) * 0.3 + 0.05
    x = torch.rand(3, cells, s.users, generator=generator) * 200
    keys = ("request", "input_bits", "output_bits", "gain", "cache")
    more = ("attached", "uplink_interference", "downlink_interference", "handover", "nearby")
    served = serve(s, *(slot[key] for key in keys), b, x, **{key: slot[key] for key in more})
    assert ("nearby" in set(served.keys())) == (rate is not None)
    for n in range(3):
        for c in range(cells):
            expected = loop_serve(s, slot, b, x, n, c)
            for u in range(s.users):
                for key in ("delay", "quality", "utility"):
                    value = served[key][n, c, u].item()
                    assert value == (pytest.approx(expected[u][key], rel=1e-5, abs=2e-6) if u in expected else 0)
                if rate:
                    assert bool(served["nearby"][n, c, u]) == (u in expected and expected[u]["nearby"])


def test_no_interference_and_one_cell_are_what_they_were():
    s = load_scenario("paper")
    generator = torch.Generator().manual_seed(0)
    slot = initial_state(s, 5, generator)
    one = {key: slot[key][:, 0] for key in ("request", "input_bits", "output_bits", "gain")}
    cache = torch.rand(5, 10, generator=generator) < 0.5
    rest = {"cache": cache, "bandwidth": torch.full((5, 10), 0.1), "steps": torch.full((5, 10), 100.0)}
    plain = serve(s, **one, **rest)
    zero = serve(s, **one, **rest, uplink_interference=torch.zeros(5), downlink_interference=torch.zeros(5, 10),
                 handover=torch.zeros(5, 10, dtype=torch.bool))  # fmt: skip
    assert all(torch.equal(plain[key], zero[key]) for key in set(plain.keys()))


SEVERAL = {
    "cells": 5,
    "users": 12,
    "active_users": [3, 12],
    "arrival_rate": 0.3,
    "departure_rate": 0.3,
    "popularity_scope": "per_cell",
    "ranking": "shuffled",
    "shadowing_db": 6.0,
    "slots_per_frame": 2,
}


def test_each_doubling_of_the_users_is_as_likely_where_they_are_spread_by_logarithm():
    s = load_scenario("paper", users=64, active_users=[1, 63], active_users_spread="log")
    count = initial_state(s, 6000, torch.Generator().manual_seed(3))["present"].sum(-1)
    assert count.min() == 1 and count.max() == 63
    octaves = torch.bincount(count.double().log2().long(), minlength=6) / 6000
    torch.testing.assert_close(octaves, torch.full((6,), 1 / 6), atol=0.02, rtol=0)


def test_users_come_and_go_and_belong_to_one_cell():
    s = load_scenario("paper", **SEVERAL)
    generator = torch.Generator().manual_seed(3)
    state = initial_state(s, 200, generator)
    count = state["present"].sum(-1)
    assert count.min() == 3 and count.max() == 12
    torch.testing.assert_close(torch.bincount(count)[3:] / 200, torch.full((10,), 0.1), atol=0.07, rtol=0)
    for _ in range(6):
        before, state = state, advance(s, state, draw_noise(s, 200, generator))
        assert torch.equal(state["attached"].sum(1), state["present"].long())
        assert torch.equal(state["serving"] >= 0, state["present"])
        changed = state["present"] != before["present"]
        assert changed.any() == (state["slot"][0] % 2 == 0)
        stayed = state["present"] & before["present"]
        moved = stayed & (state["serving"] != before["serving"])
        assert torch.equal(state["handover"].any(1), moved)  # who comes is not handed over
        inside = torch.linalg.vector_norm(state["position"] - s.centre, dim=-1)
        assert (inside <= s.area_radius * (1 + 1e-5)).all()


def test_hysteresis_holds_users_where_they_are():
    ratio = {}
    for hysteresis in (0.0, 3.0, 12.0):
        s = load_scenario("paper", cells=7, users=30, hysteresis_db=hysteresis)
        generator = torch.Generator().manual_seed(1)
        state = initial_state(s, 40, generator)
        total = 0
        for _ in range(5):
            state = advance(s, state, draw_noise(s, 40, generator))
            total += state["handover"].sum().item()
        ratio[hysteresis] = total / (5 * 40 * 30)
    assert ratio[0.0] > ratio[3.0] > ratio[12.0] > 0


def test_requests_follow_the_serving_cells_popularity():
    s = load_scenario("paper", cells=3, users=60, popularity_scope="per_cell", ranking="shuffled")
    assert s.request_probability.shape == (3, 3, 10)
    more = load_scenario("paper", cells=5, users=60, popularity_scope="per_cell", ranking="shuffled")
    assert torch.equal(more.request_probability[:3], s.request_probability)
    state = initial_state(s, 400, torch.Generator().manual_seed(0))
    for cell in range(3):
        for j in range(3):
            here = (state["popularity"][:, cell] == j)[:, None] & state["attached"][:, cell]
            share = torch.bincount(state["request"][:, cell][here], minlength=10) / here.sum()
            torch.testing.assert_close(share, s.request_probability[cell, j], atol=0.035, rtol=0)
    shared = initial_state(load_scenario("paper", cells=3), 50, torch.Generator().manual_seed(0))["popularity"]
    assert torch.equal(shared, shared[:, :1].expand(-1, 3)) and len(shared.unique()) == 3


def test_shadowing_is_log_normal_with_memory():
    s = load_scenario("paper", cells=2, users=50, shadowing_db=8.0, shadowing_memory=0.7)
    generator = torch.Generator().manual_seed(0)
    first = state = initial_state(s, 100, generator)
    for _ in range(2):
        state = advance(s, state, draw_noise(s, 100, generator))
    assert state["shadowing"].std().item() == pytest.approx(1.0, abs=0.03)
    both = torch.stack((first["shadowing"].flatten(), state["shadowing"].flatten())).corrcoef()
    assert both[0, 1].item() == pytest.approx(0.49, abs=0.04)


def test_the_first_worlds_are_the_same_however_many():
    s = load_scenario("paper", **SEVERAL)
    few, many = (torch.Generator().manual_seed(5) for _ in range(2))
    a, b = initial_state(s, 3, few), initial_state(s, 9, many)
    assert all(torch.equal(a[key], b[key][:3]) for key in ("popularity", "request", "attached", "present"))
    torch.testing.assert_close(a["gain"], b["gain"][:3])


PINNED = {
    "request": [[1, 2, 3, 1], [1, 1, 2, 0]],
    "position": [41.8804931640625, -207.0882110595703],
    "gain": [7.240581745282526e-11, 8.848619753587528e-12],
    "input_bits": [58776096.0, 67536696.0],
}


def test_one_crowd_draws_what_it_drew():
    """Pinned before there were several cells: the same seed gives the same worlds."""
    s = load_scenario("paper")
    generator = torch.Generator().manual_seed(11)
    state = initial_state(s, 2, generator)
    state = advance(s, state, draw_noise(s, 2, generator))
    assert set(state) == {"slot", "popularity", "position", "velocity", "mean_velocity", "request", "input_bits",
                          "output_bits", "gain", "attached"}  # fmt: skip
    assert state["request"][:, 0, :4].tolist() == PINNED["request"]
    torch.testing.assert_close(state["position"][0, 0], torch.tensor(PINNED["position"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(state["gain"][:, 0, 0], torch.tensor(PINNED["gain"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(state["input_bits"][:, 0, 9], torch.tensor(PINNED["input_bits"]), rtol=1e-6, atol=0)
