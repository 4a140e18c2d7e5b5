"""Makes the allocation that the dual suggests feasible, and improves it locally."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.users import (
    BANDWIDTH_SLACK,
    CLOSE,
    LATE,
    ON_TIME,
    STARVED,
    TINY,
    Plan,
    Users,
    choose,
    put,
)


def _fill(users: Users, x: Tensor, mode: Tensor, rounds: int = 8) -> tuple[Tensor, Tensor]:
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


def _within_budget(users: Users, x: Tensor) -> Tensor:
    """Grant the steps asked for, users with the fastest link first, until the budget is used up; [n, U]."""
    order = users.link.masked_fill(x == 0, torch.inf).argsort(-1)
    asked = x.gather(-1, order)
    before = asked.cumsum(-1) - asked
    granted = torch.minimum(asked, (users.budget - before).clamp_min(0.0))
    granted = torch.where(granted > users.floor.gather(-1, order), granted, 0.0)  # steps below A1 buy nothing
    return torch.zeros_like(x).scatter(-1, order, granted)


def _piece_by_piece(users: Users, x: Tensor) -> Tensor:
    """Grant the steps asked for by linear pieces of the quality curves, those of most utility per cost first; [n, U].

    The first piece of a curve counts with the steps before it. No piece goes before one that it builds on.
    """
    end = torch.cat((users.start[..., 1:], users.full.unsqueeze(-1)), -1)
    begin = torch.cat((torch.zeros_like(end[..., :1]), users.start[..., 1:]), -1)
    top = torch.minimum(end, x.unsqueeze(-1))
    size = (top - begin).clamp_min(0.0)
    alpha, delay = users.alpha, (1 - users.alpha) * users.per_step / users.deadline
    worth = (alpha.unsqueeze(-1) if isinstance(alpha, Tensor) else alpha) * (top - users.start) / users.rise
    worth = worth / size.clamp_min(TINY) - delay.unsqueeze(-1)
    worth = worth.masked_fill(size == 0, -torch.inf).cummin(-1).values
    order = worth.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    asked = size.flatten(-2).gather(-1, order)
    granted = torch.minimum(asked, (users.budget - (asked.cumsum(-1) - asked)).clamp_min(0.0))
    granted = torch.zeros_like(asked).scatter(-1, order, granted).view_as(size).sum(-1)
    return torch.where(granted > users.floor, granted, 0.0)


def primal(users: Users, plans: list[Plan], bound: Tensor, rounds: int) -> tuple[Plan, Tensor]:
    """The best of the plans, made feasible and improved up to `rounds` times where it misses the bound; and its value.

    Both bound and value are of the users' total utility, [n].
    """
    late = Plan(users.link, torch.zeros_like(users.link), torch.full_like(plans[0].mode, LATE))  # always possible
    best, best_value = late, torch.full_like(bound, -torch.inf)
    grants = (_within_budget,) if users.alike else (_within_budget, _piece_by_piece)
    for plan in (late, *plans):
        # A plan may meet the deadline exactly with all of the bandwidth; it must stay feasible with slightly less.
        shares = plan.bandwidth * (1 - 2 * BANDWIDTH_SLACK) / plan.bandwidth.sum(-1, keepdim=True).clamp_min(1.0)
        x = torch.where(plan.mode == ON_TIME, torch.minimum(plan.steps, users.steps_in_time(shares)), plan.steps)
        for granted in (grant(users, x) for grant in grants):
            b, value = _fill(users, granted, plan.mode)
            best = choose(value > best_value, Plan(b, granted, plan.mode), best)
            best_value = torch.maximum(value, best_value)
    for _ in range(rounds):
        rows = (best_value < bound - CLOSE * users.attached.sum(-1)).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        better, value = _change_one(users.rows(rows), Plan(*(part[rows] for part in best)), best_value[rows])
        best = put(best, rows, better)
        best_value = best_value.index_copy(0, rows, value)
    return best, best_value


def _change_one(users: Users, plan: Plan, value: Tensor) -> tuple[Plan, Tensor]:
    """The plan after the best change of one user's regime and steps, and its value [n].

    The steps tried are none, all it can have, and those where its quality curve bends.
    """
    count = users.link.shape[-1]
    me = torch.eye(count, dtype=torch.bool, device=value.device).unsqueeze(1)  # [U, 1, U]: whose plan changes
    spare = (users.budget - (plan.steps.sum(-1, keepdim=True) - plan.steps)).clamp_min(0.0)
    knots = (users.full, torch.zeros_like(users.full), *users.start.unbind(-1)[1:])
    best, best_value = plan, value
    for steps in (torch.minimum(knot, spare) * users.hit for knot in knots):
        x = torch.where(me, steps, plan.steps)
        for regime in (STARVED, LATE, ON_TIME):
            mode = torch.where(me, regime, plan.mode)
            b, values = _fill(users, x, mode)  # [U, n, U], [U, n]
            top, who = values.max(0)
            pick = who[None, :, None].expand(1, -1, count)
            best = choose(top > best_value, Plan(*(part.gather(0, pick)[0] for part in (b, x, mode))), best)
            best_value = torch.maximum(top, best_value)
    return best, best_value
