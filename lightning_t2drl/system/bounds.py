"""How good a slot can be: a proven upper bound, an allocation close to it, and the cache that is best on average.

The slot's problem, for a given cache, is to choose shares b and steps x with sum b <= 1 and sum x <= L so that the
users' mean utility is largest. For multipliers lambda, mu >= 0 let

    Phi(lambda, mu) = lambda + mu L + sum_u max over b in [0, 1], x >= 0 of [utility_u(b, x) - lambda b - mu x].

For every feasible (b, x) the bracket's sum exceeds sum_u utility_u by lambda (1 - sum b) + mu (L - sum x) >= 0 at most,
so Phi / U is an upper bound whatever the multipliers (weak duality), with the floor of l and the penalty chi included:
nothing about utility_u is relaxed, only its inner maximum must be exact. It is, because every user is in one of three
regimes, and in each the maximum is in closed form (`_Users.best_response`):

- starved, b = 0: l = -1, late, and x is 0 or A3, as quality is worth alpha / A3 per step at best;
- late: l taken as 1 - D / tau without its floor, which never exceeds the true l and equals it where the floor is not
  reached; D separates, so b = sqrt((1 - alpha) a / (tau lambda)) and x is 0 or A3;
- on time, D <= tau: b >= a / (tau - D_gen(x) - D_bh) besides. On [A1, A3] the objective is concave in x after b is
  maximised out, and where the deadline does not bind it is linear, so x is 0, A3, or where the derivative vanishes
  on the deadline: alpha / (A3 - A1) - mu = lambda a B1 / (tau - D_gen(x))^2.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.caching import all_caches, fill_in_order, fits
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, hits, serve
from lightning_t2drl.system.world import draw_noise, initial_state, new_slot

# Share of the deadline that allocations leave free, lest float32 rounding in `serve` make them late; the bound leaves
# none.
DEADLINE_SLACK = 2e-5
STARVED, LATE, ON_TIME = 0, 1, 2
PRICE_RANGE = (1e-7, 1e4)  # of lambda; the bound holds whatever it is


@dataclass
class _Users:
    """What the inner problem knows of each user, float64 [n, U]."""

    link: Tensor  # a_u, s
    fixed: Tensor  # delay beyond access at 0 steps (hit), or altogether (miss), s
    hit: Tensor
    attached: Tensor
    floor: Tensor  # A1
    full: Tensor  # A3
    per_step: Tensor  # B1
    alpha: float
    deadline: float
    penalty: float
    slack: float = 0.0

    @property
    def in_time(self) -> float:
        """What counts as meeting the deadline, s."""
        return self.deadline * (1 - self.slack)

    @property
    def weight(self) -> Tensor:
        """kappa_u = (1 - alpha) a_u / tau: utility lost per unit of 1 / b."""
        return (1 - self.alpha) * self.link / self.deadline

    def quality(self, x: Tensor) -> Tensor:
        return torch.where(self.hit, ((x - self.floor) / (self.full - self.floor)).clamp(0, 1), 1.0)

    def rest(self, x: Tensor) -> Tensor:
        """Delay beyond access, s."""
        return self.fixed + self.per_step * x * self.hit

    def least_share(self, x: Tensor) -> Tensor:
        """The bandwidth share that just meets the deadline; above 1 where none does."""
        left = self.in_time - self.rest(x)
        return torch.where(left > 0, self.link / left.clamp_min(1e-12), torch.inf)

    def value(self, x: Tensor, b: Tensor, mode: Tensor | int) -> Tensor:
        """Utility in a regime; for `LATE` without the floor of l, see the module's docstring."""
        linear = (1 - self.alpha) * (1 - self.rest(x) / self.deadline) - self.weight / b.clamp_min(1e-12)
        late = torch.as_tensor(mode) < ON_TIME
        starved = torch.as_tensor(mode) == STARVED
        out = self.alpha * self.quality(x) + torch.where(starved, self.alpha - 1.0, linear) - self.penalty * late
        return out * self.attached

    def utility(self, x: Tensor, b: Tensor) -> Tensor:
        """The users' true utility, floor and penalty included."""
        delay = self.link / b.clamp_min(1e-12) + self.rest(x)
        latency = (1 - delay / self.deadline).clamp_min(-1.0)
        out = self.alpha * self.quality(x) + (1 - self.alpha) * latency - self.penalty * (delay > self.deadline)
        return out * self.attached

    def rows(self, index: Tensor) -> _Users:
        """The same of some slots only."""
        cut: dict[str, Any] = {f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **cut)

    def best_response(self, price: Tensor, step_price: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each user's best (value, b, x, mode) at prices lambda, mu [n, 1]; misses pay for no steps."""
        zero = torch.zeros_like(self.link)
        wish = (self.weight / price).sqrt().clamp(1e-9, 1.0)
        gain = self.alpha / (self.full - self.floor) - step_price
        left = (price * self.link * self.per_step / gain.clamp_min(1e-15)).sqrt()
        bent = (self.in_time - self.fixed - left) / self.per_step.clamp_min(1e-12)
        reach = (self.in_time - self.fixed - self.link) / self.per_step.clamp_min(1e-12)
        bent = torch.minimum(torch.minimum(bent, reach).clamp_min(0.0), self.full) * self.hit
        full = self.full * self.hit
        candidates = [(zero, STARVED), (full, STARVED), (zero, LATE), (full, LATE)]
        candidates += [(zero, ON_TIME), (full, ON_TIME), (bent, ON_TIME)]
        values, shares, steps = [], [], []
        for x, mode in candidates:
            if mode == ON_TIME:
                least = self.least_share(x)
                b = torch.maximum(wish, least.clamp_max(1.0))
                possible = least <= 1.0
            else:
                b = wish if mode == LATE else zero
                possible = torch.ones_like(self.hit)
            b = b * self.attached
            value = self.value(x, b, mode) - (price * b + step_price * x) * self.attached
            values.append(torch.where(possible, value, -torch.inf))
            shares.append(b)
            steps.append(x * self.attached)
        best, choice = torch.stack(values).max(0)
        pick = choice.unsqueeze(0)
        b = torch.stack(shares).gather(0, pick)[0]
        x = torch.stack(steps).gather(0, pick)[0]
        modes = torch.tensor([mode for _, mode in candidates], device=choice.device)
        return best, b, x, modes[choice]


def _users(
    scenario: Scenario, request: Tensor, d_in: Tensor, d_out: Tensor, gain: Tensor, cache: Tensor, attached: Tensor
) -> _Users:
    hit = hits(cache, request) & attached
    miss = attached & ~hit
    backhaul = (d_in.double() + d_out.double()) * miss * miss.sum(-1, keepdim=True) / scenario.backhaul_rate
    full = scenario.full_steps[request].double()
    at_cloud = service.generation_delay(scenario, request, torch.where(hit, 0.0, full))
    return _Users(
        link=access_time(scenario, gain, d_in, d_out).double(),
        fixed=at_cloud.double() + backhaul,
        hit=hit,
        attached=attached,
        floor=scenario.floor_steps[request].double(),
        full=full,
        per_step=scenario.seconds_per_step[request].double(),
        alpha=scenario.alpha,
        deadline=scenario.deadline,
        penalty=scenario.deadline_penalty,
    )


def slot_bound(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    attached: Tensor | None = None,
    rounds: int = 3,
) -> TensorDict:
    """Upper bound on a slot's utility for a given cache, and a feasible allocation near it.

    Args:
        scenario: the world's constants, on the same device as the tensors.
        request, input_bits, output_bits, gain: [*, U] as for `serve`.
        cache: bool [*, M].
        attached: bool [*, U]; all when left out.
        rounds: of local improvement of the allocation; 0 keeps what the dual suggests.

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
    bound, x, mode = _dual(users, scenario.step_budget)
    careful = replace(users, slack=DEADLINE_SLACK)
    x, b = _primal(careful, x, mode, scenario.step_budget, rounds)
    request, input_bits, output_bits, gain, cache, attached = inputs
    served = serve(scenario, request, input_bits, output_bits, gain, cache, b.float(), x.float(), attached)
    achieved = cell_mean(served["utility"], attached)
    # Rounded up, so that it stays a bound in float32.
    bound = torch.nextafter((bound / attached.sum(-1).clamp_min(1)).float(), torch.tensor(torch.inf))
    out = {"bound": bound, "achieved": achieved, "bandwidth": b.float(), "steps": x.float()}
    out = {key: value.reshape(*batch, *value.shape[1:]) for key, value in out.items()}
    return TensorDict(out, batch_size=batch, device=request.device)


def _dual(users: _Users, budget: float, halvings: int = 18, step_halvings: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise Phi over both prices by nested bisection.

    Returns:
        The least Phi met [n], and (x, mode) [n, U] of a best response within the bandwidth that may exceed the steps.
    """
    n = len(users.link)
    zero = users.link.new_zeros(n, 1)
    bound, x, mode = _over_bandwidth_price(users, zero, budget, halvings)
    scarce = (x.sum(-1) > budget * (1 + 1e-9)).nonzero().squeeze(-1)  # elsewhere steps cost nothing
    if len(scarce) == 0:
        return bound, x, mode
    few = users.rows(scarce)
    low = zero[scarce]
    high = (few.alpha / (few.full - few.floor)).amax(-1, keepdim=True)  # nobody takes steps at this price
    best = bound[scarce]
    some_x, some_mode = torch.zeros_like(few.link), torch.zeros_like(mode[scarce])
    for step in range(step_halvings + 1):
        # The last evaluation is on the side that takes too many steps: `_primal` knows best whom to refuse.
        price = (low + high) / 2 if step < step_halvings else low
        phi, some_x, some_mode = _over_bandwidth_price(few, price, budget, halvings)
        best = torch.minimum(best, phi)
        over = some_x.sum(-1, keepdim=True) > budget * (1 + 1e-9)
        low, high = torch.where(over, price, low), torch.where(over, high, price)
    bound[scarce], x[scarce], mode[scarce] = best, some_x, some_mode
    return bound, x, mode


def _over_bandwidth_price(
    users: _Users, step_price: Tensor, budget: float, halvings: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Least Phi over lambda for given mu [n, 1], and the best response where the bandwidth is not exceeded."""
    low = torch.full_like(step_price, PRICE_RANGE[0]).log()
    high = torch.full_like(step_price, PRICE_RANGE[1]).log()
    best = torch.full_like(step_price.squeeze(-1), torch.inf)
    for step in range(halvings + 1):
        middle = (low + high) / 2 if step < halvings else high
        price = middle.exp()
        value, b, x, mode = users.best_response(price, step_price)
        phi = price.squeeze(-1) + step_price.squeeze(-1) * budget + (value * users.attached).sum(-1)
        best = torch.minimum(best, phi)
        over = b.sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return best, x, mode


def _fill(users: _Users, x: Tensor, mode: Tensor, halvings: int = 22) -> tuple[Tensor, Tensor]:
    """The best bandwidth split for given steps and regimes, and the users' total utility; [*, n, U], [*, n].

    b_u = clip(sqrt(kappa_u / lambda), least_u, 1) with the lambda at which the shares sum to 1; -inf where the least
    shares already exceed 1.
    """
    least = torch.where(mode == ON_TIME, users.least_share(x), 0.0)
    root = torch.where(mode == STARVED, 0.0, users.weight.sqrt()) * users.attached
    least = least * users.attached
    possible = (least.sum(-1) <= 1) & torch.isfinite(least).all(-1)
    least = torch.where(possible.unsqueeze(-1), least, 0.0)
    low, high = (torch.full_like(root[..., :1], p).log() for p in PRICE_RANGE)
    for _ in range(halvings):
        middle = (low + high) / 2
        b = torch.maximum(root * (-middle / 2).exp(), least).clamp_max(1.0)
        over = b.sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    b = torch.maximum(root * (-high / 2).exp(), least).clamp_max(1.0)
    return b, torch.where(possible, users.utility(x, b).sum(-1), -torch.inf)


def _within_budget(users: _Users, x: Tensor, budget: float) -> Tensor:
    """Grant the steps asked for, users with the fastest link first, until the budget is used up; [n, U]."""
    order = users.link.masked_fill(x == 0, torch.inf).argsort(-1)
    asked = x.gather(-1, order)
    before = asked.cumsum(-1) - asked
    granted = torch.minimum(asked, (budget - before).clamp_min(0.0))
    granted = torch.where(granted > users.floor.gather(-1, order), granted, 0.0)  # steps below A1 buy nothing
    return torch.zeros_like(x).scatter(-1, order, granted)


def _primal(users: _Users, x: Tensor, mode: Tensor, budget: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Feasible steps and shares [n, U]: the dual's suggestion, then the best change of one user, `rounds` times."""
    x = _within_budget(users, x, budget)
    b, value = _fill(users, x, mode)
    hopeless = ~torch.isfinite(value)
    if bool(hopeless.any()):  # start from everybody served late, which is always possible
        mode = torch.where(hopeless.unsqueeze(-1), torch.full_like(mode, LATE), mode)
        b, value = _fill(users, x, mode)
    count = x.shape[-1]
    me = torch.eye(count, dtype=torch.bool, device=x.device).unsqueeze(1)  # [U, 1, U]: whose plan changes
    for _ in range(rounds):
        spare = (budget - (x.sum(-1, keepdim=True) - x)).clamp_min(0.0)  # what user u could have, [n, U]
        full = torch.minimum(users.full, spare) * users.hit
        options = [(full, ON_TIME), (torch.zeros_like(x), ON_TIME), (full, LATE), (torch.zeros_like(x), STARVED)]
        best_value, best = value, (x, mode, b)
        for steps, regime in options:
            many_x = torch.where(me, steps, x)
            many_mode = torch.where(me, torch.full_like(mode, regime), mode)
            many_b, many_value = _fill(users, many_x, many_mode)
            top, who = many_value.max(0)
            better = (top > best_value).unsqueeze(-1)
            pick = who[None, :, None].expand(1, -1, count)
            found = (many_x.gather(0, pick)[0], many_mode.gather(0, pick)[0], many_b.gather(0, pick)[0])
            x_, mode_, b_ = (torch.where(better, new, old) for new, old in zip(found, best, strict=True))
            best = (x_, mode_, b_)
            best_value = torch.maximum(best_value, top)
        x, mode, b = best
        value = best_value
    return x, b


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
    slot = new_slot(scenario, popularity, world["position"], *draw_noise(scenario, slots, generator))
    return {key: value[:, 0] for key, value in slot.items()}


def _solve(scenario: Scenario, sample: dict[str, Tensor], caches: Tensor, slots: int, rounds: int) -> TensorDict:
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
    )


def _by_halving(scenario: Scenario, sample: dict[str, Tensor], slots: int) -> Tensor:
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    number = 16
    while len(caches) > 1:
        number = min(number, slots)
        scores = torch.cat(
            [_solve(scenario, sample, part, number, rounds=0)["bound"].mean(-1) for part in caches.split(256)]
        )
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
