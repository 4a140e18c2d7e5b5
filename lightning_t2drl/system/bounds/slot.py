"""How good a slot can be: a proven upper bound, an allocation close to it, and the cache that is best on average.

The slot's problem, for a given cache, is to choose shares b and steps x with sum b <= 1 and sum x <= L so that the
users' mean utility is largest (docs/concepts/bound.md). Split what may happen to a user into two classes, such as
late and on time, and let k be the number of users in the second. For multipliers lambda, mu >= 0 let

    v_u, w_u = suprema over (b, x) of the first and of the second class of [utility_u(b, x) - lambda b - mu x],
    Phi_k(lambda, mu) = lambda + mu L + sum_u v_u + the sum of the k largest w_u - v_u.

**Proof that max_k Phi_k / U is a bound.** Take a feasible (b, x) with k users in the second class. As sum b <= 1 and
sum x <= L, sum_u utility_u <= lambda + mu L + sum_u [utility_u - lambda b_u - mu x_u], and each bracket is at most w_u
for those k users and v_u for the others: at most Phi_k in all, whatever the multipliers, which may thus be chosen for
each k on its own, and whatever the split, so that the least over several splits is a bound, too. Keeping the
count k closes the gap: without it the bound would grant fractions of the first A1 steps, and count fractions of users
as late. So users are split into **active** hits (x > A1, steps that buy quality) and others, and, where
that leaves a gap, into those on time and those late.

The floor of l and the penalty chi are included, since nothing about utility_u is relaxed; only v and w must not be too
small. They are exact over three regimes that together cover every (b, x), with b in [0, 1] and x in [A1, min(A3, L)]
where active and x = 0 elsewhere (more steps only cost), see `Response`:

- starved, b = 0: l = -1 and late; the objective is linear in x, so x is at an end;
- late: l taken as 1 - D / tau without its floor. That never exceeds the true l, and equals it where l > -1; where
  l = -1 the starved regime has the same utility for less. D separates, so b = sqrt((1 - alpha) a / (tau lambda)),
  cut at 1, and x is at an end;
- on time, D <= tau: besides, b >= a / (tau - D_gen(x) - D_bh). The objective is jointly concave and, once b is
  maximised out, of slope alpha / (A3 - A1) - (1 - alpha) B1 / tau - mu in x where the deadline does not bind and
  alpha / (A3 - A1) - mu - lambda a B1 / (tau - D_gen(x) - D_bh)^2 where it does, without a jump between. So x = A1 if
  the first is not positive; else where the second vanishes, cut to the interval and to what b = 1 can still deliver.

**Services of several kinds** change two things. Steps are counted by what they cost, x_u -> cost_m x_u, which turns
sum cost_m x_u <= L into the sum above, with A1, A3 and B1 in the same units; alpha, tau and chi are the user's own.
And a quality curve may have several linear pieces: [A1, A3] is the union of theirs, so the supremum over it is the
largest of the suprema over the pieces, each found as above with the piece's ends and slope in the places of A1, A3 and
1 / (A3 - A1). As quality is concave from A1 on, it is the least of all pieces' lines, which is how it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.bounds.dual import Dual
from lightning_t2drl.system.bounds.primal import Primal
from lightning_t2drl.system.bounds.response import BY_ACTIVITY, BY_DEADLINE
from lightning_t2drl.system.bounds.users import CLOSE, DEADLINE_SLACK, Plan, Users, users_of
from lightning_t2drl.system.cells import members_first
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, serve

TOGETHER = 20_000  # users whose slots are solved at once on a CPU


def slot_bound(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    attached: Tensor | None = None,
    uplink_interference: Tensor | None = None,
    downlink_interference: Tensor | None = None,
    handover: Tensor | None = None,
    nearby: Tensor | None = None,
    rounds: int = 2,
    counts: int = 4,
) -> TensorDict:
    """Upper bound on a slot's utility for a given cache, and a feasible allocation near it.

    Interference, handovers and what other cells hold are given, as for `serve`: no allocation changes them, so they
    only move each user's link time and fixed delay, and the proof stands. It is the bound of one cell's slot.

    Args:
        scenario: the world's constants, on the same device as the tensors.
        request, input_bits, output_bits, gain: [*, U] as for `serve`.
        cache: bool [*, M].
        attached: bool [*, U]; all when left out.
        uplink_interference, downlink_interference, handover, nearby: as for `serve`, [*], [*, U], [*, U] and [*, M].
        rounds: of local improvement of the allocation; 0 keeps what the dual suggests.
        counts: how many values of k get multipliers of their own; 0 leaves the plain dual, with one split.

    Returns:
        TensorDict of batch size [*]: `bound` [*] on the mean utility over attached users over all feasible allocations
        (see the module's docstring for the proof), `achieved` [*] by `bandwidth` (shares) and `steps` [*, U].
    """
    batch, count = request.shape[:-1], request.shape[-1]
    everybody = attached is None
    attached = torch.ones_like(request, dtype=torch.bool) if attached is None else attached

    def flat(value: Tensor) -> Tensor:
        return value.expand(*batch, value.shape[-1]).reshape(-1, value.shape[-1])

    per_user = {"request": request, "input_bits": input_bits, "output_bits": output_bits, "gain": gain}
    several = {"downlink_interference": downlink_interference, "handover": handover}
    per_user |= {"attached": attached} | {key: value for key, value in several.items() if value is not None}
    given = {key: flat(value) for key, value in per_user.items()}
    order = None if everybody else members_first(given["attached"])
    if order is not None:
        given = {key: value.gather(-1, order) for key, value in given.items()}
    given["cache"] = flat(cache)
    if nearby is not None:
        given["nearby"] = flat(nearby)
    if uplink_interference is not None:
        given["uplink_interference"] = uplink_interference.expand(batch).reshape(-1)
    users = users_of(scenario, **given)
    with _one_thread():
        bound, plan = _in_parts(users, rounds, counts)
    cost = service.of_model(scenario.step_cost, given["request"])
    b, x = plan.bandwidth.float(), (plan.steps / cost).float()
    served = serve(scenario, **given, bandwidth=b, steps=x)
    achieved = cell_mean(served["utility"], given["attached"])
    bound = (bound / given["attached"].sum(-1).clamp_min(1) + 1e-7).float()
    bound = torch.nextafter(bound, torch.full_like(bound, torch.inf))  # rounded up
    if order is not None:
        b, x = (value.new_zeros(len(value), count).scatter(-1, order, value) for value in (b, x))
    out = {"bound": bound, "achieved": achieved, "bandwidth": b, "steps": x}
    out = {key: value.reshape(*batch, *value.shape[1:]) for key, value in out.items()}
    return TensorDict(out, batch_size=batch, device=request.device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it tensors are worked on by one thread: these are too small to share, others would cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_parts(users: Users, rounds: int, counts: int) -> tuple[Tensor, Plan]:
    """`_solve_slots` of so many slots at a time as a CPU's caches hold."""
    n, width = users.link.shape
    if users.link.device.type != "cpu" or n * width <= TOGETHER:
        return _solve_slots(users, rounds, counts)
    parts = torch.arange(n).split(max(TOGETHER // width, 1))
    bounds, plans = zip(*(_solve_slots(users.rows(part), rounds, counts) for part in parts), strict=True)
    return torch.cat(bounds), Plan(*(torch.cat(part) for part in zip(*plans, strict=True)))


def _solve_slots(users: Users, rounds: int, counts: int) -> tuple[Tensor, Plan]:
    """Bound on the users' total utility [n] and the best plan found, with more effort where a gap is left."""
    found = Primal(replace(users, in_time=users.deadline * (1 - DEADLINE_SLACK)))
    bound = torch.full_like(found.value, torch.inf)
    close = CLOSE * users.attached.sum(-1)
    for split in (BY_ACTIVITY, BY_DEADLINE) if counts else (BY_ACTIVITY,):
        rows = (found.value < bound - close).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        dual = Dual(users.rows(rows), split)
        found.offer(dual.plan, rows)
        for _ in range(counts):
            part = (dual.ready() & (found.value[rows] < dual.bound - close[rows])).nonzero().squeeze(-1)
            if len(part) == 0:
                break
            found.offer(dual.refine(part), rows[part])
        bound[rows] = torch.minimum(bound[rows], dual.bound)
        for _ in range(rounds):
            open_ = (found.value < bound - close).nonzero().squeeze(-1)
            if len(open_) == 0:
                break
            found.improve(open_)
    return bound, found.plan
