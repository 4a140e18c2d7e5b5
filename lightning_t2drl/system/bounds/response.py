"""Each user's best response to prices of bandwidth and of steps; see `slot` for the derivation.

What depends on no price is computed once per slot, what depends on the price of steps alone once for each of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.users import TINY, Users

# A user's options are the regimes without quality, then active; here they are split into two classes.
Split = tuple[tuple[int, ...], tuple[int, ...]]
BY_ACTIVITY: Split = ((0, 1, 2), (3, 4, 5))
BY_DEADLINE: Split = ((0, 1, 3, 4), (2, 5))
SMALL = 1e-30  # in the place of a 0 to divide by


class Option(NamedTuple):
    """What each user gets under one option, [n, U]."""

    value: Tensor  # net of prices; -inf where the option cannot be
    bandwidth: Tensor
    steps: Tensor


class Response:
    """The users' problem; all [n, U], or [P, n, U] by linear piece of the quality curve."""

    def __init__(self, users: Users) -> None:
        attached, alpha = users.attached, users.alpha
        present = attached.double()
        self.link = torch.where(attached, users.link, SMALL)
        self.weight = (1 - alpha) * self.link / users.deadline
        self.root = self.weight.sqrt()
        self.spare = torch.where(attached, users.in_time - users.fixed, 1.0)
        self.per_step = users.per_step.clamp_min(SMALL)
        self.wait = (1 - alpha) * users.per_step / users.deadline  # utility that a step costs by its time
        self.reach = (self.spare - self.link) / self.per_step  # steps in time with the whole bandwidth
        # Value of each regime before steps and bandwidth
        latency = (1 - alpha) * (1 - users.fixed / users.deadline) * present
        self.regimes = (alpha - 1 - users.penalty) * present, latency - users.penalty * present, latency
        self.idle = [value + alpha * present * ~users.hit for value in self.regimes]
        late = self.link > (1 + 1e-9) * self.spare  # even with all of the bandwidth, but for rounding
        self.idle[2] = self.idle[2].masked_fill(late | ~attached, -torch.inf)  # nobody absent counts as on time
        self.least = (self.link / self.spare.clamp_min(SMALL)).clamp_max(1.0)
        # Active users' pieces: value `origin` + `rise` x for x from `start` to `most`
        self.start, score, rise = (part.movedim(-1, 0) for part in (users.start, users.score, users.rise))
        self.most = torch.cat((self.start[1:], users.full.unsqueeze(0))).clamp_max(users.budget)
        self.rise = alpha / rise
        possible = users.hit & attached & (self.most > self.start)
        self.origin = (alpha * score - self.rise * self.start).masked_fill(~possible, -torch.inf)

    def at(self, step_price: Tensor) -> Offer:
        """The same at a price mu [n, 1] of steps."""
        slopes = self.rise - step_price, self.rise - step_price - self.wait  # of value in steps: starved, otherwise
        active = []
        for slope, regime in zip(slopes, self.regimes[:2], strict=True):
            x = torch.where(slope > 0, self.most, self.start)
            active.append(_best_piece(self.origin + regime + slope * x, x))
        slope = slopes[1]
        steep = slopes[0].clamp_min(SMALL)
        return Offer(
            of=self,
            active=active,
            origin=(self.origin + self.regimes[2]).masked_fill(self.reach < self.start, -torch.inf),
            slope=slope,
            top=torch.where(slope > 0, torch.minimum(self.most, self.reach), self.start),
            most=self.spare / self.per_step,
            bend=(self.link / (steep * self.per_step)).sqrt(),
        )


@dataclass
class Offer:
    """The response at one price of steps, for any price of bandwidth."""

    of: Response
    active: list[list[Tensor]]  # value before bandwidth, and steps, of a starved and of a late active user [n, U]
    # Of an active user on time, [P, n, U]: its value is origin + slope x before bandwidth,
    origin: Tensor
    slope: Tensor
    top: Tensor
    most: Tensor
    bend: Tensor

    def answer(self, price: Tensor) -> list[Option]:
        """The options at a price lambda [n, 1] of bandwidth."""
        of = self.of
        (starved, starved_steps), (late, late_steps) = self.active
        wish = (of.root * price.rsqrt()).clamp(TINY, 1.0)
        met = torch.maximum(wish, of.least)
        x = (self.most - price.sqrt() * self.bend).clamp(of.start, self.top)
        b = torch.maximum(wish, of.link / (of.spare - of.per_step * x)).clamp_max(1.0)
        on_time, b, x = _best_piece(self.origin + self.slope * x - (of.weight / b + price * b), b, x)
        fee, met_fee = of.weight / wish + price * wish, of.weight / met + price * met
        none = torch.zeros_like(wish)
        return [
            Option(of.idle[0], none, none),
            Option(of.idle[1] - fee, wish, none),
            Option(of.idle[2] - met_fee, met, none),
            Option(starved, none, starved_steps),
            Option(late - fee, wish, late_steps),
            Option(on_time, b, x),
        ]


def _best_piece(value: Tensor, *more: Tensor) -> list[Tensor]:
    """Value and more, each [P, n, U], of the piece of highest value."""
    if len(value) == 1:
        return [part[0] for part in (value, *more)]
    value, piece = value.max(0, keepdim=True)
    return [value[0], *(part.gather(0, piece)[0] for part in more)]
