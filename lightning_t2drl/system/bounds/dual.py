"""The dual of a slot's problem: the least bound over prices of bandwidth and steps; see `slot` for the proof.

Phi_k is convex in both prices together, so each evaluation gives a **cut**, a plane that is nowhere above it. At one
price of steps two cuts are kept whose slopes in the price of bandwidth differ in sign. The next price is where they
cross: exact for two linear pieces, and the geometric mean for a square root. The mean of the two that is level in that
price is a cut in the price of steps alone, which is searched likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.response import SMALL, Offer, Response, Split
from lightning_t2drl.system.bounds.users import Plan, Users, put

FIRST, NEXT, STEP_PRICES = 8, 4, 5  # prices of bandwidth tried while steps are free, and at each of so many others
PRICE, AT_ZERO, SLOPE, STEP_SLOPE = range(4)  # of a cut [4, n, 1]: where it touches, its height at no price, its slopes
PLAN_AT = 3  # of a cut in the price of steps: the price of bandwidth to take its plan at


class Dual:
    """The least Phi_k found for every number k of users in the second class, and what users choose at those prices.

    Starts from one pair of prices for all k.
    """

    def __init__(self, users: Users, split: Split) -> None:
        search = _Search(users, split)
        self.users, self.split = users, split
        self.table = search.run()  # [n, U + 1]
        self.plan, self.price = search.plan, search.price
        self.settled = torch.zeros_like(self.table, dtype=torch.bool)  # which k had a search of their own

    @property
    def bound(self) -> Tensor:
        """On the users' total utility, [n]."""
        return self.table.amax(-1)

    def ready(self) -> Tensor:
        """Where the k of highest Phi_k has not yet had a search of its own, bool [n]."""
        return ~self.settled.gather(-1, self.table.argmax(-1, keepdim=True)).squeeze(-1)

    def refine(self, rows: Tensor) -> Plan:
        """In some slots search prices for the k of highest Phi_k alone; what users choose at these."""
        table = self.table[rows]
        top = table.argmax(-1, keepdim=True)
        search = _Search(self.users.rows(rows), self.split, top, self.price[rows])
        self.table[rows] = torch.minimum(table, search.run())
        self.settled[rows] = self.settled[rows].scatter(-1, top, True)
        return search.plan


class _Search:
    """Minimises Phi_k over both prices for one k per slot, [n, 1], or max_k Phi_k where `count` is None."""

    def __init__(self, users: Users, split: Split, count: Tensor | None = None, price: Tensor | None = None) -> None:
        self.users, self.split, self.count = users, split, count
        self.response = Response(users)
        if price is None:  # exact, if all are late and none is starved
            price = self.response.root.sum(-1, keepdim=True).square().clamp_min(1e-6)
        n, width = users.link.shape
        self.table = users.link.new_full((n, width + 1), torch.inf)  # least Phi_k found, for every k
        self.least = torch.full_like(price, torch.inf)  # the least found of what is minimised
        self.plan: Plan  # where `settle` settled
        self.price, self.step_price = price, torch.zeros_like(price)
        unknown = torch.full_like(price, torch.nan)
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
                price = torch.where(high[SLOPE] > 0, _crossing(low, high) * (1 - 1e-6), high[PRICE])
                low, high = _closer(low, high, scarce.at_step_price(price, NEXT))
            scarce.settle(low)  # where too many steps are asked for rather than too few
            self.table[rows] = torch.minimum(self.table[rows], scarce.table)
            self.plan = put(self.plan, rows, scarce.plan)
            self.price = self.price.index_copy(0, rows, scarce.price)
            self.least = self.least.index_copy(0, rows, torch.minimum(self.least[rows], scarce.least))
        if self.count is None:
            return torch.minimum(self.table, self.least)
        return self.table.scatter(-1, self.count, torch.minimum(self.least, self.table.gather(-1, self.count)))

    def at_step_price(self, step_price: Tensor, rounds: int) -> Tensor:
        """The cut in the price of steps, [4, n, 1]: where it touches, height at no price, slope, `PLAN_AT`."""
        offer = self.response.at(step_price)
        low, high = self.low.clone(), self.high.clone()
        for cut in (low, high):  # the same planes, seen from the new price
            cut[AT_ZERO] += cut[STEP_SLOPE] * (step_price - self.step_price)
        for step in range(rounds):
            low, high = _closer(low, high, self.cut(offer, _next_price(low, high, step), step_price))
        self.low, self.high, self.step_price = low, high, step_price
        # Where all slopes seen have one sign, the last cut stands for both.
        low, high = torch.where(low[SLOPE].isnan(), high, low), torch.where(high[SLOPE].isnan(), low, high)
        share = (high[SLOPE] / (high[SLOPE] - low[SLOPE])).nan_to_num(0.5, 0.5, 0.5)
        level = torch.lerp(high, low, share)
        between = _crossing(low, high)
        inside = (between > low[PRICE]) & (between < high[PRICE])
        plan_at = torch.where(inside, between * (1 + 1e-6), high[PRICE])  # where the plan asks for less than all
        return torch.stack((step_price, level[AT_ZERO] - level[STEP_SLOPE] * step_price, level[STEP_SLOPE], plan_at))

    def settle(self, cut: Tensor) -> None:
        """Take plan, price and the table of all Phi_k where a cut in the price of steps says."""
        self.price = cut[PLAN_AT]
        self.cut(self.response.at(cut[PRICE]), self.price, cut[PRICE], keep=True)

    def cut(self, offer: Offer, price: Tensor, step_price: Tensor, keep: bool = False) -> Tensor:
        """The cut at these prices [n, 1]; `keep` keeps the plan that is best at them, and the table of all Phi_k."""
        options: list[tuple[Tensor, ...]] = [*offer.answer(price)]
        if keep:
            modes = (torch.full_like(self.users.hit, number % 3, dtype=torch.int64) for number in range(6))
            options = [(*option, mode) for option, mode in zip(options, modes, strict=True)]
        first, second = (_best([options[option] for option in members]) for members in self.split)
        gain = second[0] - first[0]
        phi = price + step_price * self.users.budget + first[0].sum(-1, keepdim=True)
        if self.count is None:
            chosen = gain > 0
            height = phi + gain.clamp_min(0.0).sum(-1, keepdim=True)
        else:
            most = int(self.count.max())
            ranked, order = gain.topk(most, -1)
            among = torch.arange(most, device=gain.device) < self.count
            chosen = torch.zeros_like(self.users.hit).scatter(-1, order, among)
            height = phi + torch.where(among, ranked, 0.0).sum(-1, keepdim=True)
        self.least = torch.minimum(self.least, height)
        plan = [torch.where(chosen, more, less) for less, more in zip(first[1:], second[1:], strict=True)]
        if keep:
            table = torch.cat((phi, phi + gain.sort(-1, descending=True).values.cumsum(-1)), -1)
            self.table = torch.minimum(self.table, table)
            self.plan = Plan(*plan)
        slope, step_slope = 1 - plan[0].sum(-1, keepdim=True), self.users.budget - plan[1].sum(-1, keepdim=True)
        return torch.stack((price, height - slope * price, slope, step_slope))


def _best(options: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """User by user the option of highest value, which comes first in each."""
    best = [*options[0]]
    for option in options[1:]:
        better = option[0] > best[0]
        best = [old if new is old else torch.where(better, new, old) for new, old in zip(option, best, strict=True)]
    return best


def _closer(low: Tensor, high: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The two cuts after one of them gave way to a new one, by the sign of its slope."""
    falls = new[SLOPE] < 0
    return torch.where(falls, new, low), torch.where(falls, high, new)


def _crossing(low: Tensor, high: Tensor) -> Tensor:
    """The price at which two cuts cross; NaN, if one is not known."""
    apart = low - high
    return -apart[AT_ZERO] / apart[SLOPE]


def _next_price(low: Tensor, high: Tensor, step: int) -> Tensor:
    """Where to look next: where the cuts cross, if both are known; else further on, the further the later.

    If all users are late, their shares sum to 1 at the price times the square of their sum.
    """
    crossing = _crossing(low, high)
    price = torch.minimum(torch.maximum(crossing, low[PRICE] / 8), high[PRICE] * 8)
    if bool((unknown := crossing.isnan()).any()):
        least = 1.5 * 4.0**step
        up = low[PRICE] * (1 - low[SLOPE]).pow(3).clamp(least, 64 * least)
        down = high[PRICE] * (1 - high[SLOPE]).pow(3).clamp(1 / (64 * least), 1 / least)
        further = torch.where(low[SLOPE].isnan(), down, up)
        price = torch.where(unknown, torch.where(further.isnan(), low[PRICE], further), price)
    return price.clamp(SMALL, 1e9)
