"""The dual of a slot's problem: the least bound over prices of bandwidth and steps; see `slot` for the proof."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.users import Plan, Split, Users, put


def dual(users: Users, split: Split, counts: int) -> tuple[Tensor, list[Plan]]:
    """The least max_k Phi_k found [n], and the plans that were best at the prices tried.

    Starts from one pair of prices for all k, then searches prices for the k of highest Phi_k alone, `counts` times.
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
        plans.append(put(plans[0], rows, search.plan))
    return table.amax(-1), plans


class _Search:
    """Minimises Phi_k over both prices for one k per slot, or max_k Phi_k where `count` is None."""

    def __init__(self, users: Users, split: Split, count: Tensor | None) -> None:
        self.users, self.split, self.count = users, split, count
        n, width = users.link.shape
        self.table = users.link.new_full((n, width + 1), torch.inf)  # least Phi_k found so far, for every k
        self.plan = Plan(users.link, users.link, users.link)  # set by `evaluate`

    def evaluate(self, price: Tensor, step_price: Tensor) -> Tensor:
        """Phi [n, 1] at these prices [n, 1]; keeps the plan that is best at them, and the least Phi_k of each k."""
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
        self.plan = Plan(b.gather(0, option)[0], x.gather(0, option)[0], option[0] % 3)
        return table.gather(-1, count)

    def run(self) -> Tensor:
        """The least Phi_k found [n, U + 1], and the plan from the side that asks for too many steps."""
        zero = torch.zeros_like(self.users.link[:, :1])
        self.at_step_price(zero)
        rows = (self.plan.steps.sum(-1) > self.users.budget).nonzero().squeeze(-1)  # elsewhere steps are free
        if len(rows):
            count = None if self.count is None else self.count[rows]
            scarce = _Search(self.users.rows(rows), self.split, count)
            high = (scarce.users.alpha / scarce.users.rise[..., 0]).amax(
                -1, keepdim=True
            )  # the first piece is steepest
            low = _minimise(scarce.at_step_price, 1e-4 * high, high, 6)[0]
            scarce.at_step_price(low)
            self.table[rows] = torch.minimum(self.table[rows], scarce.table)
            self.plan = put(self.plan, rows, scarce.plan)
        return self.table

    def at_step_price(self, step_price: Tensor) -> tuple[Tensor, Tensor]:
        """Least Phi over lambda for this mu [n, 1], and its slope in mu; the plan stays within the bandwidth."""

        def phi(price: Tensor) -> tuple[Tensor, Tensor]:
            value = self.evaluate(price, step_price)
            return value, 1 - self.plan.bandwidth.sum(-1, keepdim=True)

        # Beyond `high` a share of 1 / U costs more than it can ever bring, so all shares sum to less than 1.
        penalty = self.users.penalty
        most = penalty.amax(-1, keepdim=True) if isinstance(penalty, Tensor) else penalty
        high = torch.ones_like(step_price) * (self.users.link.shape[-1] * (2 + most))
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
