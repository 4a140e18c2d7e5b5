"""How good a slot can be: a proven upper bound, an allocation close to it, and the cache that is best on average.

The slot's problem, for a given cache, is to choose shares b and steps x with sum b <= 1 and sum x <= L so that the
users' mean utility is largest (system model, section 8). Split what may happen to a user into two classes, such as
late and on time, and let k be the number of users in the second. For multipliers lambda, mu >= 0 let

    v_u, w_u = suprema over (b, x) of the first and of the second class of [utility_u(b, x) - lambda b - mu x],
    Phi_k(lambda, mu) = lambda + mu L + sum_u v_u + the sum of the k largest w_u - v_u.

**Proof that max_k Phi_k / U is a bound.** Take a feasible (b, x) with k users in the second class. As sum b <= 1 and
sum x <= L, sum_u utility_u <= lambda + mu L + sum_u [utility_u - lambda b_u - mu x_u], and each bracket is at most w_u
for those k users and v_u for the others: at most Phi_k in all, whatever the multipliers, which may thus be chosen for
each k on its own, and whatever the split, so that the least over several splits is a bound, too. That the count is
kept is what closes the gap: without it the bound would grant fractions of the first A1 steps, and would miss deadlines
by fractions of a user. So users are split into **active** hits (x > A1, steps that buy quality) and others, and, where
that leaves a gap, into those on time and those late.

The floor of l and the penalty chi are included, since nothing about utility_u is relaxed; only v and w must not be too
small. They are exact over three regimes that together cover every (b, x), with b in [0, 1] and x in [A1, min(A3, L)]
where active and x = 0 elsewhere (more steps only cost), see `_Users.respond`:

- starved, b = 0: l = -1 and late; the objective is linear in x, so x is at an end;
- late: l taken as 1 - D / tau without its floor. That never exceeds the true l, and equals it where l > -1; where
  l = -1 the starved regime has the same utility for less. D separates, so b = sqrt((1 - alpha) a / (tau lambda)),
  cut at 1, and x is at an end;
- on time, D <= tau: besides, b >= a / (tau - D_gen(x) - D_bh). The objective is jointly concave and, once b is
  maximised out, of slope alpha / (A3 - A1) - (1 - alpha) B1 / tau - mu in x where the deadline does not bind and
  alpha / (A3 - A1) - mu - lambda a B1 / (tau - D_gen(x) - D_bh)^2 where it does, without a jump between. So x = A1 if
  the first is not positive; else where the second vanishes, cut to the interval and to what b = 1 can still deliver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.caching import all_caches, fill_in_order, fits
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, hits, serve
from lightning_t2drl.system.world import draw_noise, initial_state, new_slot, split_noise

# `serve` works in float32. The bound counts delays a hair beyond the deadline as met and is rounded up; allocations
# leave a hair of the deadline and of the bandwidth free.
BOUND_LENIENCE, DEADLINE_SLACK, BANDWIDTH_SLACK = 1e-6, 2e-5, 1e-6
STARVED, LATE, ON_TIME = 0, 1, 2
# A user's options are these regimes without quality, then active; here they are split into two classes.
BY_ACTIVITY, BY_DEADLINE = ((0, 1, 2), (3, 4, 5)), ((0, 1, 3, 4), (2, 5))
Split = tuple[tuple[int, ...], tuple[int, ...]]
CLOSE = 1e-5  # utility per user that is not worth a search
TINY = 1e-300


class _Plan(NamedTuple):
    """What the users of n slots get, [n, U] each."""

    bandwidth: Tensor
    steps: Tensor
    mode: Tensor  # STARVED, LATE or ON_TIME


@dataclass
class _Users:
    """What the inner problem knows of each user, float64 [n, U]."""

    link: Tensor  # a_u, s
    fixed: Tensor  # delay beyond access at 0 steps (hit), or altogether (miss), s
    hit: Tensor
    attached: Tensor
    floor: Tensor  # A1
    full: Tensor  # A3
    per_step: Tensor  # B1, s
    alpha: float
    deadline: float  # s
    penalty: float
    budget: float  # L
    in_time: float  # what counts as meeting the deadline, s

    @property
    def weight(self) -> Tensor:
        """(1 - alpha) a_u / tau: utility lost per unit of 1 / b."""
        return (1 - self.alpha) * self.link / self.deadline

    @property
    def most(self) -> Tensor:
        """The most steps of use to a hit."""
        return self.full.clamp_max(self.budget)

    def quality(self, x: Tensor) -> Tensor:
        return torch.where(self.hit, ((x - self.floor) / (self.full - self.floor)).clamp(0, 1), 1.0)

    def rest(self, x: Tensor) -> Tensor:
        """Delay beyond access, s."""
        return self.fixed + self.per_step * x * self.hit

    def least_share(self, x: Tensor) -> Tensor:
        """The bandwidth share that just meets the deadline; infinite where none does."""
        left = self.in_time - self.rest(x)
        return torch.where(left > 0, self.link / left.clamp_min(TINY), torch.inf)

    def steps_in_time(self, b: Tensor) -> Tensor:
        """The most steps that meet the deadline with a share b; 0 where none do."""
        left = self.in_time - self.fixed - self.link / b.clamp_min(TINY)
        return (left / self.per_step.clamp_min(TINY)).clamp_min(0.0)

    def utility(self, x: Tensor, b: Tensor) -> Tensor:
        """The users' true utility, floor and penalty included; [*, n, U]."""
        delay = self.link / b.clamp_min(TINY) + self.rest(x)
        latency = (1 - delay / self.deadline).clamp_min(-1.0)
        out = self.alpha * self.quality(x) + (1 - self.alpha) * latency - self.penalty * (delay > self.deadline)
        return out * self.attached

    def rows(self, index: Tensor) -> _Users:
        """The same of some slots only."""
        cut: dict[str, Any] = {f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **cut)

    def respond(self, price: Tensor, step_price: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each user's best (b, x) at the prices lambda, mu [n, 1] under each option; see the module's docstring.

        Returns:
            Value net of prices, bandwidth share and steps, each [6, n, U], see `BY_ACTIVITY`. The value of what cannot
            be is -inf.
        """
        quality_slope = self.alpha / (self.full - self.floor) - step_price
        slope = quality_slope - (1 - self.alpha) * self.per_step / self.deadline
        per_step = self.per_step.clamp_min(TINY)
        spare = self.in_time - self.fixed
        bent = (spare - (price * self.link * per_step / quality_slope.clamp_min(TINY)).sqrt()) / per_step
        bent = torch.maximum(torch.where(slope > 0, bent, self.floor), self.floor)
        reach = self.steps_in_time(torch.ones_like(spare))
        most = self.most
        active = torch.stack(
            (
                torch.where(quality_slope > 0, most, self.floor),
                torch.where(slope > 0, most, self.floor),
                torch.minimum(torch.minimum(bent, most), reach),
            )
        )
        x = torch.stack((torch.zeros_like(active), active))  # [2, modes, n, U]
        wish = (self.weight / price).sqrt().clamp_max(1.0)
        least = self.least_share(x[:, ON_TIME])
        b = torch.stack((torch.zeros_like(x[:, STARVED]), wish.expand_as(least), torch.maximum(wish, least)), 1)
        b = b.clamp_max(1.0)
        latency = (1 - self.alpha) * (1 - self.rest(x) / self.deadline) - self.weight / b.clamp_min(TINY)
        latency[:, STARVED] = self.alpha - 1
        latency[:, :ON_TIME] -= self.penalty
        value = self.alpha * self.quality(x) + latency - price * b - step_price * x
        value[:, ON_TIME].masked_fill_(least > 1 + 1e-9, -torch.inf)  # the tolerance forgives rounding
        value[1].masked_fill_(~self.hit | (most <= self.floor), -torch.inf)
        value = torch.where(self.attached, value, 0.0)
        return value.flatten(0, 1), (b * self.attached).flatten(0, 1), (x * self.hit).flatten(0, 1)


def _users(
    scenario: Scenario, request: Tensor, d_in: Tensor, d_out: Tensor, gain: Tensor, cache: Tensor, attached: Tensor
) -> _Users:
    hit = hits(cache, request) & attached
    miss = attached & ~hit
    backhaul = (d_in.double() + d_out.double()) * miss * miss.sum(-1, keepdim=True) / scenario.backhaul_rate
    curve = service.profile(scenario, request)
    full = curve.full_steps.double()
    beyond = service.generation_delay(curve, torch.where(hit, 0.0, full))
    return _Users(
        link=access_time(scenario, gain, d_in, d_out).double(),
        fixed=beyond.double() + backhaul,
        hit=hit,
        attached=attached,
        floor=curve.floor_steps.double(),
        full=full,
        per_step=curve.seconds_per_step.double(),
        alpha=scenario.alpha,
        deadline=scenario.deadline,
        penalty=scenario.deadline_penalty,
        budget=scenario.step_budget,
        in_time=scenario.deadline * (1 + BOUND_LENIENCE),
    )


def slot_bound(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    attached: Tensor | None = None,
    rounds: int = 2,
    counts: int = 4,
) -> TensorDict:
    """Upper bound on a slot's utility for a given cache, and a feasible allocation near it.

    Args:
        scenario: the world's constants, on the same device as the tensors.
        request, input_bits, output_bits, gain: [*, U] as for `serve`.
        cache: bool [*, M].
        attached: bool [*, U]; all when left out.
        rounds: of local improvement of the allocation; 0 keeps what the dual suggests.
        counts: how many values of k get multipliers of their own; 0 leaves the plain dual, with one split.

    Returns:
        TensorDict of batch size [*]: `bound` [*] on the mean utility over attached users over all feasible allocations
        (see the module's docstring for the proof), `achieved` [*] by `bandwidth` (shares) and `steps` [*, U].
    """
    batch = request.shape[:-1]
    attached = torch.ones_like(request, dtype=torch.bool) if attached is None else attached

    def flat(value: Tensor) -> Tensor:
        return value.expand(*batch, value.shape[-1]).reshape(-1, value.shape[-1])

    inputs = [flat(v) for v in (request, input_bits, output_bits, gain, cache, attached)]
    users = _users(scenario, *inputs)
    bound, plan = _solve_slots(users, rounds, counts)
    b, x = plan.bandwidth.float(), plan.steps.float()
    request, input_bits, output_bits, gain, cache, attached = inputs
    served = serve(scenario, request, input_bits, output_bits, gain, cache, b, x, attached)
    achieved = cell_mean(served["utility"], attached)
    bound = (bound / attached.sum(-1).clamp_min(1) + 1e-7).float()
    bound = torch.nextafter(bound, torch.full_like(bound, torch.inf))  # rounded up
    out = {"bound": bound, "achieved": achieved, "bandwidth": b, "steps": x}
    out = {key: value.reshape(*batch, *value.shape[1:]) for key, value in out.items()}
    return TensorDict(out, batch_size=batch, device=request.device)


def _solve_slots(users: _Users, rounds: int, counts: int) -> tuple[Tensor, _Plan]:
    """Bound on the users' total utility [n] and the best plan found, splitting by deadline where a gap is left."""
    careful = replace(users, in_time=users.deadline * (1 - DEADLINE_SLACK))
    bound, plans = _dual(users, BY_ACTIVITY, counts)
    plan, value = _primal(careful, plans, bound, rounds)
    rows = (value < bound - CLOSE * users.attached.sum(-1)).nonzero().squeeze(-1)
    if counts == 0 or len(rows) == 0:
        return bound, plan
    other, plans = _dual(users.rows(rows), BY_DEADLINE, counts)
    bound[rows] = torch.minimum(bound[rows], other)
    plans.append(_Plan(*(part[rows] for part in plan)))
    return bound, _put(plan, rows, _primal(careful.rows(rows), plans, bound[rows], rounds)[0])


def _dual(users: _Users, split: Split, counts: int) -> tuple[Tensor, list[_Plan]]:
    """The least max_k Phi_k found [n], and plans that answer the prices met on the way.

    Starts from prices common to all k and then gives the k of the highest Phi_k its own, `counts` times.
    """
    search = _Search(users, split, None)
    table, plans = search.run(), [search.plan]
    settled = torch.zeros_like(table, dtype=torch.bool)
    for _ in range(counts):
        top = table.argmax(-1, keepdim=True)
        rows = (~settled.gather(-1, top)).squeeze(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        search = _Search(users.rows(rows), split, top[rows])
        table[rows] = torch.minimum(table[rows], search.run())
        settled[rows] = settled[rows].scatter(-1, top[rows], True)
        plans.append(_put(plans[0], rows, search.plan))
    return table.amax(-1), plans


class _Search:
    """Minimises Phi_k over both prices for one k per slot, or max_k Phi_k where `count` is None."""

    def __init__(self, users: _Users, split: Split, count: Tensor | None) -> None:
        self.users, self.split, self.count = users, split, count
        n, width = users.link.shape
        self.table = users.link.new_full((n, width + 1), torch.inf)  # least Phi_k met, for every k
        self.plan = _Plan(users.link, users.link, users.link)  # set by `evaluate`

    def evaluate(self, price: Tensor, step_price: Tensor) -> Tensor:
        """Phi [n, 1] at these prices [n, 1]; keeps the plan that answers them and each k's least Phi_k."""
        value, b, x = self.users.respond(price, step_price)
        (first, option), (second, other) = (value[list(members)].max(0) for members in self.split)
        ranked, order = (second - first).sort(-1, descending=True)
        phi = price + step_price * self.users.budget + first.sum(-1, keepdim=True)
        table = torch.cat((phi, phi + ranked.cumsum(-1)), -1)
        self.table = torch.minimum(self.table, table)
        count = table.argmax(-1, keepdim=True) if self.count is None else self.count
        ranks = torch.arange(ranked.shape[-1], device=count.device).expand_as(ranked)
        chosen = torch.zeros_like(self.users.hit).scatter(-1, order, ranks < count)
        names = [torch.tensor(members, device=count.device) for members in self.split]
        option = torch.where(chosen, names[1][other], names[0][option]).unsqueeze(0)
        self.plan = _Plan(b.gather(0, option)[0], x.gather(0, option)[0], option[0] % 3)
        return table.gather(-1, count)

    def run(self) -> Tensor:
        """The least Phi_k met [n, U + 1], with the plan on the side that asks for too many steps."""
        zero = torch.zeros_like(self.users.link[:, :1])
        self.at_step_price(zero)
        rows = (self.plan.steps.sum(-1) > self.users.budget).nonzero().squeeze(-1)  # elsewhere steps are free
        if len(rows):
            count = None if self.count is None else self.count[rows]
            scarce = _Search(self.users.rows(rows), self.split, count)
            high = (scarce.users.alpha / (scarce.users.full - scarce.users.floor)).amax(-1, keepdim=True)
            low = _minimise(scarce.at_step_price, 1e-4 * high, high, 6)[0]
            scarce.at_step_price(low)
            self.table[rows] = torch.minimum(self.table[rows], scarce.table)
            self.plan = _put(self.plan, rows, scarce.plan)
        return self.table

    def at_step_price(self, step_price: Tensor) -> tuple[Tensor, Tensor]:
        """Least Phi over lambda for this mu [n, 1], and its slope in mu; the plan keeps to the bandwidth."""

        def phi(price: Tensor) -> tuple[Tensor, Tensor]:
            value = self.evaluate(price, step_price)
            return value, 1 - self.plan.bandwidth.sum(-1, keepdim=True)

        # Beyond `high` a share of 1 / U costs more than it can ever bring, so all shares sum to less than 1.
        high = torch.full_like(step_price, self.users.link.shape[-1] * (2 + self.users.penalty))
        price = _minimise(phi, 1e-6 * high, high, 9)[1]
        value = self.evaluate(price, step_price)
        return value, self.users.budget - self.plan.steps.sum(-1, keepdim=True)


def _minimise(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Close in on the minimum of a convex function of positive numbers [n, 1], given with its slope.

    Where the tangents at both ends cross (exact for two linear pieces) alternates with the geometric mean (safe).

    Returns:
        The ends of the interval left.
    """
    (f_low, g_low), (f_high, g_high) = function(low), function(high)
    for step in range(rounds):
        cross = (f_low - f_high + g_high * high - g_low * low) / (g_high - g_low)
        usable = (cross > low) & (cross < high) & (step % 2 == 0)
        point = torch.where(usable, cross, (low * high).sqrt())
        f, g = function(point)
        falls = g < 0
        low, f_low, g_low = (torch.where(falls, new, old) for new, old in ((point, low), (f, f_low), (g, g_low)))
        high, f_high, g_high = (torch.where(falls, old, new) for new, old in ((point, high), (f, f_high), (g, g_high)))
    return low, high


def _fill(users: _Users, x: Tensor, mode: Tensor, rounds: int = 8) -> tuple[Tensor, Tensor]:
    """The best bandwidth split for given steps and regimes, and the users' total utility; [*, n, U], [*, n].

    b_u = max(s sqrt((1 - alpha) a_u / tau), least_u) with the s at which the shares sum to 1, found by Newton's method
    from above on a function that is convex and piecewise linear in s; -inf where the least shares exceed 1.
    """
    least = torch.where((mode == ON_TIME) & users.attached, users.least_share(x), 0.0)
    root = torch.where((mode == STARVED) | ~users.attached, 0.0, users.weight.sqrt())
    total = 1 - BANDWIDTH_SLACK
    possible = least.sum(-1, keepdim=True) <= total
    least = torch.where(possible, least, 0.0)
    scale = total / root.sum(-1, keepdim=True).clamp_min(TINY)
    for _ in range(rounds):
        free = root * scale > least
        left = total - (least * ~free).sum(-1, keepdim=True)
        scale = torch.minimum(scale, left.clamp_min(0.0) / (root * free).sum(-1, keepdim=True).clamp_min(TINY))
    extra = (root * scale - least).clamp_min(0.0)
    left = total - least.sum(-1, keepdim=True)
    b = least + extra * (left / extra.sum(-1, keepdim=True).clamp_min(TINY)).clamp_max(1.0)  # exact, if not yet settled
    return b, torch.where(possible.squeeze(-1), users.utility(x, b).sum(-1), -torch.inf)


def _within_budget(users: _Users, x: Tensor) -> Tensor:
    """Grant the steps asked for, users with the fastest link first, until the budget is used up; [n, U]."""
    order = users.link.masked_fill(x == 0, torch.inf).argsort(-1)
    asked = x.gather(-1, order)
    before = asked.cumsum(-1) - asked
    granted = torch.minimum(asked, (users.budget - before).clamp_min(0.0))
    granted = torch.where(granted > users.floor.gather(-1, order), granted, 0.0)  # steps below A1 buy nothing
    return torch.zeros_like(x).scatter(-1, order, granted)


def _primal(users: _Users, plans: list[_Plan], bound: Tensor, rounds: int) -> tuple[_Plan, Tensor]:
    """The best of the plans, made feasible and improved up to `rounds` times where it misses the bound; and its value.

    Both bound and value are of the users' total utility, [n].
    """
    late = _Plan(users.link, torch.zeros_like(users.link), torch.full_like(plans[0].mode, LATE))  # always possible
    best, best_value = late, torch.full_like(bound, -torch.inf)
    for plan in (late, *plans):
        # A plan may ride the deadline with all the bandwidth there is; it must stay feasible with a hair less.
        shares = plan.bandwidth * (1 - 2 * BANDWIDTH_SLACK) / plan.bandwidth.sum(-1, keepdim=True).clamp_min(1.0)
        x = torch.where(plan.mode == ON_TIME, torch.minimum(plan.steps, users.steps_in_time(shares)), plan.steps)
        x = _within_budget(users, x)
        b, value = _fill(users, x, plan.mode)
        best = _choose(value > best_value, _Plan(b, x, plan.mode), best)
        best_value = torch.maximum(value, best_value)
    for _ in range(rounds):
        rows = (best_value < bound - CLOSE * users.attached.sum(-1)).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        better, value = _change_one(users.rows(rows), _Plan(*(part[rows] for part in best)), best_value[rows])
        best = _put(best, rows, better)
        best_value = best_value.index_copy(0, rows, value)
    return best, best_value


def _put(plan: _Plan, rows: Tensor, part: _Plan) -> _Plan:
    """A copy of the plan with some slots' replaced."""
    return _Plan(*(old.index_copy(0, rows, new) for old, new in zip(plan, part, strict=True)))


def _choose(first: Tensor, plan: _Plan, other: _Plan) -> _Plan:
    """Slot by slot the one plan or the other, by bool [n]."""
    return _Plan(*(torch.where(first.unsqueeze(-1), a, b) for a, b in zip(plan, other, strict=True)))


def _change_one(users: _Users, plan: _Plan, value: Tensor) -> tuple[_Plan, Tensor]:
    """The plan after the best change of one user's regime and steps (none, or all it can have), and its value [n]."""
    count = users.link.shape[-1]
    me = torch.eye(count, dtype=torch.bool, device=value.device).unsqueeze(1)  # [U, 1, U]: whose plan changes
    spare = (users.budget - (plan.steps.sum(-1, keepdim=True) - plan.steps)).clamp_min(0.0)
    most = torch.minimum(users.full, spare) * users.hit
    best, best_value = plan, value
    for steps in (most, torch.zeros_like(most)):
        x = torch.where(me, steps, plan.steps)
        for regime in (STARVED, LATE, ON_TIME):
            mode = torch.where(me, regime, plan.mode)
            b, values = _fill(users, x, mode)  # [U, n, U], [U, n]
            top, who = values.max(0)
            pick = who[None, :, None].expand(1, -1, count)
            best = _choose(top > best_value, _Plan(*(part.gather(0, pick)[0] for part in (b, x, mode))), best)
            best_value = torch.maximum(top, best_value)
    return best, best_value


@dataclass(frozen=True)
class OracleCaches:
    """The best cache of each popularity state and what it brings."""

    cache: Tensor  # bool [J, M]
    bound: Tensor  # expected upper bound per slot [J]
    achieved: Tensor  # expected utility per slot of the allocation found [J]
    hit_ratio: Tensor  # [J]


def oracle_caches(scenario: Scenario, slots: int, seed: int) -> OracleCaches:
    """The cache that maximises expected utility under exact allocation, for every true popularity state.

    All caches meet the same `slots` sampled slots. Up to 12 models every feasible cache is compared, by successive
    halving: each round drops the worse three quarters and quadruples the slots. With more models a local search
    starts from the most popular ones and adds, drops or swaps one model at a time.

    Args:
        slots: sampled in the last round.
        seed: of the sampling.
    """
    caches, bounds, achieved, ratios = [], [], [], []
    for state in range(scenario.popularity_states):
        sample = _sample_slots(scenario, state, slots, seed)
        if scenario.models <= 12:
            cache = _by_halving(scenario, sample, slots)
        else:
            cache = _by_local_search(scenario, sample, state, max(slots // 16, 16))
        last = _solve(scenario, sample, cache.unsqueeze(0), slots, rounds=2)
        caches.append(cache)
        bounds.append(last["bound"].mean())
        achieved.append(last["achieved"].mean())
        ratios.append(hits(cache.expand(slots, -1), sample["request"]).float().mean())
    return OracleCaches(torch.stack(caches), torch.stack(bounds), torch.stack(achieved), torch.stack(ratios))


def _sample_slots(scenario: Scenario, state: int, slots: int, seed: int) -> dict[str, Tensor]:
    """Independent slots of one popularity state, users uniform in the cell; [slots, U] each."""
    device = scenario.request_probability.device
    generator = torch.Generator(device=device).manual_seed(seed)
    world = initial_state(scenario, slots, generator)
    popularity = torch.full((slots, scenario.cells), state, device=device)
    noise = split_noise(scenario, draw_noise(scenario, slots, generator))
    slot = new_slot(scenario, popularity, world["position"], noise)
    return {key: value[:, 0] for key, value in slot.items()}


def _solve(
    scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, rounds: int, counts: int = 4
) -> TensorDict:
    """`slot_bound` of the first `slots` slots for every cache, [A, slots]."""
    first = {key: value[:slots].unsqueeze(0).expand(len(caches), -1, -1) for key, value in sample.items()}
    cache = caches.unsqueeze(1).expand(-1, slots, -1)
    return slot_bound(
        scenario,
        first["request"],
        first["input_bits"],
        first["output_bits"],
        first["gain"],
        cache,
        first["attached"],
        rounds,
        counts,
    )


def _by_halving(scenario: Scenario, sample: dict[str, Tensor], slots: int) -> Tensor:
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    number = 16
    while len(caches) > 1:
        number = min(number, slots)
        counts = 0 if number < slots and len(caches) > 256 else 4  # the plain dual is enough to tell the worst
        parts = caches.split(256)
        scores = torch.cat([_solve(scenario, sample, part, number, 0, counts)["bound"].mean(-1) for part in parts])
        keep = 1 if number == slots else max(len(caches) // 4, 4)
        caches = caches[scores.topk(min(keep, len(caches))).indices]
        number *= 4
    return caches[0]


def _by_local_search(scenario: Scenario, sample: dict[str, Tensor], state: int, slots: int) -> Tensor:
    best = fill_in_order(scenario, scenario.request_probability[state])
    score = _solve(scenario, sample, best.unsqueeze(0), slots, rounds=0)["bound"].mean(-1)
    change = torch.eye(scenario.models, dtype=torch.bool, device=best.device)
    moves = torch.cat((change, (change.unsqueeze(0) ^ change.unsqueeze(1)).flatten(0, 1).unique(dim=0)))
    while True:
        near = best ^ moves
        near = near[fits(scenario, near)]
        scores = torch.cat([_solve(scenario, sample, part, slots, 0)["bound"].mean(-1) for part in near.split(256)])
        if scores.max() <= score:
            return best
        best, score = near[scores.argmax()], scores.max()
