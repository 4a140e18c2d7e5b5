"""The dual of a slot's problem: the least bound over prices of bandwidth and steps; see `slot` for the proof.

Phi_k is convex in both prices together, so each evaluation gives a **cut**, a plane that is nowhere above it. At one
price of steps two cuts are kept whose slopes in the price of bandwidth differ in sign. The next price is where they
cross: exact for two linear pieces, and the geometric mean for a square root. The mean of the two that is level in that
price is a cut in the price of steps alone, which is searched likewise.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.response import SMALL, Offer, Response, Split
from lightning_t2drl.system.bounds.users import Plan, Users, put

FIRST, NEXT, STEP_PRICES = 8, 4, 5  # prices of bandwidth tried while steps are free, and at each of so many others
PRICE, VALUE, SLOPE, STEP_SLOPE = range(4)  # of a cut, [4, n, 1]
STEP_PRICE, PLAN_AT = 0, 3  # of a cut in the price of steps, beside VALUE and SLOPE: where its plan is taken


class Dual:
    """The least Phi_k found for every number k of users in the second class, and what users choose at those prices.

    Starts from one pair of prices for all k.
    """

    def __init__(self, users: Users, split: Split) -> None:
        search = _Search(users, split)
        self.users, self.split = users, split
        self.table = search.run()  # [n, U + 1]
        self.plans, self.price = [search.plan], search.price

    @property
    def bound(self) -> Tensor:
        """On the users' total utility, [n]."""
        return self.table.amax(-1)

    def rows(self, index: Tensor) -> Dual:
        """The same of some slots only."""
        part = copy(self)
        part.users, part.table, part.price = self.users.rows(index), self.table[index], self.price[index]
        part.plans = [plan.rows(index) for plan in self.plans]
        return part

    def refine(self, counts: int, enough: Tensor) -> None:
        """Search prices for the k of highest Phi_k alone, `counts` times or until the bound is `enough` [n].

        Adds to the plans.
        """
        settled = torch.zeros_like(self.table, dtype=torch.bool)
        for _ in range(counts):
            top = self.table.argmax(-1, keepdim=True)
            rows = (~settled.gather(-1, top).squeeze(-1) & (self.bound > enough)).nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            search = _Search(self.users.rows(rows), self.split, top[rows], self.price[rows])
            self.table[rows] = torch.minimum(self.table[rows], search.run())
            settled[rows] = settled[rows].scatter(-1, top[rows], True)
            self.plans.append(put(self.plans[0], rows, search.plan))


class _Search:
    """Minimises Phi_k over both prices for one k per slot, [n, 1], or max_k Phi_k where `count` is None."""

    def __init__(self, users: Users, split: Split, count: Tensor | None = None, price: Tensor | None = None) -> None:
        self.users, self.split, self.count = users, split, count
        self.response = Response(users)
        if price is None:  # exact, if all are late and none is starved
            price = self.response.root.sum(-1, keepdim=True).square().clamp_min(1e-6)
        n, width = users.link.shape
        self.table = users.link.new_full((n, width + 1), torch.inf)  # least Phi_k found, for every k
        self.price, self.step_price = price, torch.zeros_like(price)
        unknown = torch.full_like(price, torch.nan)
        self.plan: Plan  # where `settle` settled
        self.low = self.high = torch.stack((price, unknown, unknown, unknown))  # the two cuts at `step_price`

    def rows(self, index: Tensor) -> _Search:
        """A search in some of the slots that goes on from here."""
        count = None if self.count is None else self.count[index]
        search = _Search(self.users.rows(index), self.split, count, self.price[index])
        search.low, search.high = self.low[:, index], self.high[:, index]
        return search

    def run(self) -> Tensor:
        """The least Phi_k found, [n, U + 1]."""
        free = self.at_step_price(self.step_price, FIRST)
        self.settle(free)
        rows = (free[SLOPE] < 0).squeeze(-1).nonzero().squeeze(-1)  # elsewhere there are enough steps
        if len(rows):
            scarce = self.rows(rows)
            steepest = (scarce.users.alpha / scarce.users.rise[..., 0]).amax(-1, keepdim=True)  # the first piece is
            low, high = free[:, rows], scarce.at_step_price(steepest, NEXT)
            for _ in range(STEP_PRICES):
                # More users active than the steps suffice for: Phi_k has no minimum, and k no bearing on the bound.
                price = torch.where(high[SLOPE] > 0, _crossing(low, high) * (1 - 1e-6), high[STEP_PRICE])
                low, high = _closer(low, high, scarce.at_step_price(price, NEXT))
            scarce.settle(low)  # where too many steps are asked for rather than too few
            self.table[rows] = torch.minimum(self.table[rows], scarce.table)
            self.plan = put(self.plan, rows, scarce.plan)
            self.price = self.price.index_copy(0, rows, scarce.price)
        return self.table

    def at_step_price(self, step_price: Tensor, rounds: int) -> Tensor:
        """The cut in the price of steps [4, n, 1]: that price, least Phi, its slope, and a price for bandwidth."""
        offer = self.response.at(step_price)
        low, high = self.low.clone(), self.high.clone()
        for cut in (low, high):  # the same planes, seen from the new price
            cut[VALUE] += cut[STEP_SLOPE] * (step_price - self.step_price)
        for step in range(rounds):
            low, high = _closer(low, high, self.cut(offer, _next_price(low, high, step), step_price))
        self.low, self.high, self.step_price = low, high, step_price
        # Where all slopes seen have one sign, the last cut stands for both.
        low, high = torch.where(low[SLOPE].isnan(), high, low), torch.where(high[SLOPE].isnan(), low, high)
        share = (high[SLOPE] / (high[SLOPE] - low[SLOPE])).nan_to_num(0.5, 0.5, 0.5)
        level = torch.lerp(high[VALUE] - high[SLOPE] * high[PRICE], low[VALUE] - low[SLOPE] * low[PRICE], share)
        step_slope = torch.lerp(high[STEP_SLOPE], low[STEP_SLOPE], share)
        between = _crossing(low, high)
        inside = (between > low[PRICE]) & (between < high[PRICE])
        plan_at = torch.where(inside, between * (1 + 1e-6), high[PRICE])  # where the plan asks for less than all
        return torch.stack((step_price, level, step_slope, plan_at))

    def settle(self, cut: Tensor) -> None:
        """Take plan, prices and the table of all Phi_k where a cut in the price of steps says."""
        self.price = cut[PLAN_AT]
        self.cut(self.response.at(cut[STEP_PRICE]), self.price, cut[STEP_PRICE], keep=True)

    def cut(self, offer: Offer, price: Tensor, step_price: Tensor, keep: bool = False) -> Tensor:
        """The cut at these prices [n, 1]; `keep` keeps the plan that is best at them, and the table of all Phi_k."""
        options = [*self.split[0], *self.split[1]]
        value, b, x = (torch.stack([part[option] for option in options]) for part in offer.answer(price))
        cut = len(self.split[0])
        (first, option), (second, other) = value[:cut].max(0), value[cut:].max(0)
        gain = second - first
        phi = price + step_price * self.users.budget + first.sum(-1, keepdim=True)
        if self.count is None and not keep:
            chosen = gain > 0
            phi = phi + gain.clamp_min(0.0).sum(-1, keepdim=True)
        else:
            ranked, order = gain.sort(-1, descending=True)
            table = torch.cat((phi, phi + ranked.cumsum(-1)), -1)
            self.table = torch.minimum(self.table, table)
            count = table.argmax(-1, keepdim=True) if self.count is None else self.count
            phi = table.gather(-1, count)
            ranks = torch.arange(gain.shape[-1], device=gain.device).expand_as(gain)
            chosen = torch.zeros_like(self.users.hit).scatter(-1, order, ranks < count)
        option = torch.where(chosen, other + cut, option).unsqueeze(0)
        b, x = b.gather(0, option)[0], x.gather(0, option)[0]
        if keep:
            self.plan = Plan(b, x, torch.tensor(options, device=b.device)[option[0]] % 3)
        return torch.stack((price, phi, 1 - b.sum(-1, keepdim=True), self.users.budget - x.sum(-1, keepdim=True)))


def _closer(low: Tensor, high: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The two cuts after one of them gave way to a new one, by the sign of its slope."""
    falls = new[SLOPE] < 0
    return torch.where(falls, new, low), torch.where(falls, high, new)


def _crossing(low: Tensor, high: Tensor) -> Tensor:
    """The price at which two cuts cross."""
    at_zero = (cut[VALUE] - cut[SLOPE] * cut[PRICE] for cut in (low, high))
    return (next(at_zero) - next(at_zero)) / (high[SLOPE] - low[SLOPE])


def _next_price(low: Tensor, high: Tensor, step: int) -> Tensor:
    """Where to look next: where the cuts cross, if both slopes were met; else further on, the further the later.

    If all users are late, their shares sum to 1 at the price times the square of their sum.
    """
    least = 1.5 * 4.0**step
    up = low[PRICE] * (1 - low[SLOPE]).pow(3).clamp(least, 64 * least)
    down = high[PRICE] * (1 - high[SLOPE]).pow(3).clamp(1 / (64 * least), 1 / least)
    crossing = torch.minimum(torch.maximum(_crossing(low, high), low[PRICE] / 8), high[PRICE] * 8)
    price = torch.where(high[SLOPE].isnan(), up, torch.where(low[SLOPE].isnan(), down, crossing))
    return torch.where(price.isnan(), low[PRICE], price).clamp(SMALL, 1e9)
