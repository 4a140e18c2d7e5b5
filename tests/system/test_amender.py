"""Whatever a network outputs, the shares are feasible; what is feasible already stays as it is."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.networks.heads import CompetitiveHead, CompetitiveHeadConfig, TanhHead, TanhHeadConfig, _above
from lightning_t2drl.system import amend_allocation, raw_from_shares

EXTREMES = (-1e30, -1.0, -0.999, 0.0, 1e-7, 0.5, 1.0, 1e30)


@st.composite
def decisions(draw):
    users = draw(st.integers(1, 40))
    raw = draw(st.lists(st.sampled_from(EXTREMES) | st.floats(-3, 3, width=32), min_size=2 * users, max_size=2 * users))
    flags = draw(st.sampled_from(["random", "all misses", "all hits", "nobody"]))
    attached = torch.tensor(draw(st.lists(st.booleans(), min_size=users, max_size=users)))
    hit = torch.tensor(draw(st.lists(st.booleans(), min_size=users, max_size=users)))
    if flags != "random":
        attached, hit = torch.full((users,), flags != "nobody"), torch.full((users,), flags == "all hits")
    return torch.tensor(raw).unflatten(0, (users, 2)), hit, attached


def assert_feasible(shares, hit, attached):
    assert torch.isfinite(shares).all()
    assert (shares >= 0).all() and (shares.sum(-2) <= 1 + 1e-6).all()
    assert (shares[..., 0][~attached] == 0).all()
    assert (shares[..., 1][~(hit & attached)] == 0).all()


@settings(max_examples=400, deadline=None)
@given(decisions())
def test_any_decision_becomes_feasible(decision):
    raw, hit, attached = decision
    assert_feasible(amend_allocation(raw, hit, attached), hit, attached)


@settings(max_examples=200, deadline=None)
@given(decisions(), st.booleans(), st.floats(0.5, 20))
def test_any_output_of_an_actor_becomes_feasible_through_every_head(decision, competitive, scale):
    raw, hit, attached = decision
    config = CompetitiveHeadConfig(scale=scale, step_scale=5 * scale)
    head = CompetitiveHead(config) if competitive else TanhHead(TanhHeadConfig())
    state = {"hit": hit & attached, "attached": attached, "full_share": torch.full(hit.shape, 0.17)}
    raw = head(raw.clamp(-2, 2), state)
    shares = amend_allocation(raw, hit, attached)
    assert_feasible(shares, hit, attached)
    assert_feasible(amend_allocation(raw_from_shares(shares), hit, attached), hit, attached)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10_000))
def test_feasible_points_pass_unchanged(users, seed):
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(users, generator=generator) < 0.5
    attached = torch.ones(users, dtype=torch.bool)
    shares = torch.rand(users, 2, generator=generator)
    shares = shares / shares.sum(0) * torch.rand(2, generator=generator)
    shares[..., 1] *= hit
    torch.testing.assert_close(amend_allocation(raw_from_shares(shares), hit, attached), shares, rtol=1e-4, atol=1e-6)


def test_excess_is_scaled_down_alike():
    hit = attached = torch.tensor([True, True, True])
    shares = amend_allocation(torch.tensor([[1.0, 1.0], [0.0, -1.0], [0.0, 0.0]]), hit, attached)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 2 / 3], [0.25, 0.0], [0.25, 1 / 3]]))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.sampled_from(["random", "ties", "saturated"]), st.floats(0.4, 1), st.integers(0, 10_000))
def test_no_step_is_wasted_where_the_head_drops_them(users, kind, efficient, seed):
    """Every share of steps decided is 0 or above the floor, one at most below what is most efficient or asked for, and
    what is left over would not make that of another.
    """
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(8, users, generator=generator) < 0.7
    full = 0.05 + 0.6 * torch.rand(8, users, generator=generator)
    state = {"hit": hit, "attached": torch.ones_like(hit), "full_share": full, "floor_share": full * 0.35}
    state["efficient_share"] = full * efficient
    output = torch.rand(8, users, 2, generator=generator) * 0.2 - 0.1
    output = {"random": output, "ties": torch.zeros_like(output), "saturated": torch.ones_like(output)}[kind]
    head = CompetitiveHead(CompetitiveHeadConfig(drop_wasted=True))
    steps = amend_allocation(head.decide(output, state), hit, torch.ones_like(hit))[..., 1]
    served = steps > 0
    assert (steps.sum(-1) <= 1 + 1e-6).all() and (steps[served] > state["floor_share"][served] * (1 - 1e-4)).all()
    assert served.any(-1)[hit.any(-1)].all() or kind == "random"
    asked = full * (60 * output[..., 1] + head.GENEROUS).sigmoid() * hit
    assert (steps.sum(-1) >= (asked * served).sum(-1).clamp_max(1.0) - 0.05).all()
    least = torch.minimum(state["efficient_share"], asked)
    assert (served & (steps < least * 0.999)).sum(-1).max() <= 1
    waiting = least * (~served & (asked > state["floor_share"]))
    left = 1 - steps.sum(-1)
    assert (left <= waiting.amax(-1) + 1e-5)[waiting.any(-1)].all()
    other = CompetitiveHead(CompetitiveHeadConfig(drop_wasted=False))
    torch.testing.assert_close(head(output, state), other.decide(output, state), rtol=0, atol=0)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_what_is_above_the_floors_is_shared_in_proportion(users, seed):
    generator = torch.Generator().manual_seed(seed)
    floor, shares = torch.rand(2, 30, users, generator=generator).double()
    floor = floor * (torch.rand(30, users, generator=generator) < 0.5)
    floor = floor / floor.sum(-1, keepdim=True).clamp_min(1e-9) * torch.rand(30, 1, generator=generator)
    shares = shares / shares.sum(-1, keepdim=True)
    low, high = torch.zeros(30, 1).double(), torch.ones(30, 1).double()
    for _ in range(60):  # max(floor, c shares) sums to 1 at one c: bisection
        middle = (low + high) / 2
        over = torch.maximum(floor, middle * shares).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    torch.testing.assert_close(_above(floor, shares), torch.maximum(floor, low * shares), rtol=1e-6, atol=1e-9)
