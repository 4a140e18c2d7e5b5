"""Makes the allocation that the dual suggests feasible, and improves it locally."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.users import (
    BANDWIDTH_SLACK,
    LATE,
    ON_TIME,
    STARVED,
    TINY,
    Plan,
    Users,
    choose,
    put,
)

REGIMES = [STARVED, LATE, ON_TIME]
TOTAL = 1 - BANDWIDTH_SLACK
TRIED = 16  # changes of one user, of the many there are


def _fill(users: Users, x: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
    """The best bandwidth split for given steps and regimes, and the users' total utility; [*, n, U], [*, n].

    b_u = max(s root_u, least_u), see `_needs`, with the s at which the shares sum to 1: the least that any set of users
    A gives by s sum_A root + sum_others least = 1; the best A are those of lowest least / root. -inf where the least
    shares exceed 1.
    """
    least, root = _needs(users, x, mode)
    possible = least.sum(-1, keepdim=True) <= TOTAL
    least = torch.where(possible, least, 0.0)
    order = (least / root).nan_to_num(torch.inf).argsort(-1)  # 0 / 0: wants nothing
    taken, roots = (part.gather(-1, order).cumsum(-1) for part in (least, root))
    scale = ((TOTAL - taken[..., -1:] + taken) / roots.clamp_min(TINY)).amin(-1, keepdim=True)
    b = torch.maximum(root * scale, least)
    return b, torch.where(possible.squeeze(-1), users.utility(x, b).sum(-1), -torch.inf)


def _needs(users: Users, x: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
    """The least share with which a user is on time where it shall be, and sqrt((1 - alpha) a_u / tau); 0 if starved."""
    least = torch.where((mode == ON_TIME) & users.attached, users.least_share(x), 0.0)
    return least, torch.where((mode == STARVED) | ~users.attached, 0.0, users.weight.sqrt())


def _in_time(users: Users, plan: Plan) -> Tensor:
    """The plan's steps, less so many that the users who shall be on time do not need more bandwidth than there is.

    A dual's plan meets the deadline exactly or nearly; users with steps then give way, all by the same part of theirs.
    """
    least, _ = _needs(users, plan.steps, plan.mode)
    gives = (plan.steps > 0) & (plan.mode == ON_TIME)
    over = least.sum(-1, keepdim=True) - TOTAL * (1 - BANDWIDTH_SLACK)
    shares = least * (1 - over / (least * gives).sum(-1, keepdim=True).clamp_min(TINY)).clamp_min(0.0)
    return torch.where(gives & (over > 0), torch.minimum(plan.steps, users.steps_in_time(shares)), plan.steps)


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


class Primal:
    """The best feasible allocation found for n slots so far, `plan`, and its total utility `value` [n]."""

    def __init__(self, users: Users) -> None:
        self.users = users
        self.grants = (_within_budget,) if users.alike else (_within_budget, _piece_by_piece)
        late = Plan(users.link, torch.zeros_like(users.link), torch.full_like(users.hit, LATE, dtype=torch.int64))
        self.plan, self.value = late, torch.full_like(users.link[:, 0], -torch.inf)
        self.offer(late, torch.arange(len(users.link), device=users.link.device))  # always possible

    def offer(self, plan: Plan, rows: Tensor) -> None:
        """Take a plan for some of the slots, once made feasible, where it is better."""
        users = self.users.rows(rows)
        x = _in_time(users, plan)
        for granted in (grant(users, x) for grant in self.grants):
            b, value = _fill(users, granted, plan.mode)
            self._keep(rows, Plan(b, granted, plan.mode), value)

    def improve(self, rows: Tensor) -> None:
        """Change one user's regime and steps in some of the slots, where that helps."""
        self._keep(rows, *_change_one(self.users.rows(rows), self.plan.rows(rows)))

    def _keep(self, rows: Tensor, plan: Plan, value: Tensor) -> None:
        better = value > self.value[rows]
        self.plan = put(self.plan, rows, choose(better, plan, self.plan.rows(rows)))
        self.value = self.value.index_copy(0, rows, value.maximum(self.value[rows]))


def _change_one(users: Users, plan: Plan) -> tuple[Plan, Tensor]:
    """The plan after the best change of one user's regime and steps, and its value [n].

    The steps tried are none, all it can have, and those where its quality curve bends. Of all these changes the
    `TRIED` that look best are worked out.
    """
    spare = (users.budget - (plan.steps.sum(-1, keepdim=True) - plan.steps)).clamp_min(0.0)
    knots = (users.full, torch.zeros_like(users.full), *users.start.unbind(-1)[1:])
    steps = torch.stack([torch.minimum(knot, spare) * users.hit for knot in knots for _ in REGIMES])  # [C, n, U]
    modes = torch.tensor(REGIMES * len(knots), device=steps.device)[:, None, None].expand_as(steps)
    worth = _worth(users, plan, steps, modes).movedim(0, 1).flatten(1)  # [n, C U]
    top = worth.topk(min(TRIED, worth.shape[-1]), sorted=False).indices.T.unsqueeze(-1)  # [tried, n, 1]
    who, rows = top % users.link.shape[-1], torch.arange(len(worth), device=steps.device).unsqueeze(-1)
    what = top.div(users.link.shape[-1], rounding_mode="floor")
    x = plan.steps.expand(len(top), -1, -1).scatter(-1, who, steps[what, rows, who])
    mode = plan.mode.expand(len(top), -1, -1).scatter(-1, who, modes[what, rows, who])
    b, values = _fill(users, x, mode)
    value, best = values.max(0)
    best = best[None, :, None].expand(1, -1, users.link.shape[-1])
    return Plan(*(part.gather(0, best)[0] for part in (b, x, mode))), value


def _worth(users: Users, plan: Plan, steps: Tensor, mode: Tensor) -> Tensor:
    """An estimate of the users' total utility after each user's change to these steps and regimes, [C, n, U].

    Users whom the deadline holds at their least share keep it; the rest of the bandwidth goes to the others, by root.
    """
    least, root = _needs(users, plan.steps, plan.mode)
    scale = (plan.bandwidth / root).nan_to_num(torch.inf).amin(-1, keepdim=True)
    held = root * scale * (1 + 1e-9) < least
    lost = torch.where(held, users.weight / least.clamp_min(TINY), 0.0)
    kept = _others(_before_access(users, plan.steps, plan.mode) - lost)
    left, roots = TOTAL - _others(torch.where(held, least, 0.0)), _others(torch.where(held, 0.0, root))
    least, root = _needs(users, steps, mode)
    together = (roots + root).square() / left.clamp_min(TINY)  # utility lost, if the user shares with those not held
    apart = roots.square() / (left - least).clamp_min(TINY) + users.weight / least.clamp_min(TINY)  # or is held
    lost = torch.where(root * left < least * (roots + root), apart, together)
    value = kept + _before_access(users, steps, mode) - lost
    return value.masked_fill(left <= least, -torch.inf).nan_to_num(-torch.inf)


def _others(value: Tensor) -> Tensor:
    """The sum over all other users, [n, U]."""
    return value.sum(-1, keepdim=True) - value


def _before_access(users: Users, x: Tensor, mode: Tensor) -> Tensor:
    """Each user's utility in its regime, but for the time of its access."""
    latency = torch.where(mode == STARVED, -1.0, 1 - users.rest(x) / users.deadline)
    value = users.alpha * users.quality(x) + (1 - users.alpha) * latency - users.penalty * (mode != ON_TIME)
    return torch.where(users.attached, value, 0.0)
