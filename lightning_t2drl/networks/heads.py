"""Heads turn an actor's output in [-1, 1] into a raw allocation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_t2drl.checks import within
from lightning_t2drl.networks.features import State, UserFeatures
from lightning_t2drl.system.amender import raw_from_shares


class Head(Protocol):
    """From an actor's output to a raw allocation, which the amender makes feasible.

    Where decisions should differ from what is explored and learned from, a head has a method `decide` of the same
    arguments for them.
    """

    def __call__(self, output: Tensor, state: State) -> Tensor:
        """Raw [*, U, 2] from output [*, U, 2] and the fields of a state [*]."""


@dataclass
class TanhHeadConfig:
    """No keys: there is nothing to choose."""

    _target_: str = ""


class TanhHead:
    """The published head: the output is the raw action; the amender scales what exceeds the budget."""

    Config = TanhHeadConfig

    def __init__(self, config: TanhHeadConfig) -> None:
        """Nothing to keep."""

    def __call__(self, output: Tensor, state: State) -> Tensor:
        return output


@dataclass
class CompetitiveHeadConfig:
    """Keys of `configs/allocator/head/competitive.yaml`."""

    _target_: str = ""
    scale: float = 3.0
    step_scale: float = 60.0
    square_root_law: bool = False
    drop_wasted: bool = False
    keep_deadlines: bool = False

    def __post_init__(self) -> None:
        within("", self, scale=(0, 100), step_scale=(0, 1000))


class CompetitiveHead:
    """Bandwidth by a softmax over the users; steps by a threshold that rises until the budget holds.

    The logits are `scale` times the output after subtracting its mean over the cell's users: a softmax does not
    see that mean, so without the subtraction it could drift until tanh saturates. All of the bandwidth is always
    shared out. With `square_root_law` 0.5 log a_u is added to them, a_u being the user's link time: without deadlines,
    shares in proportion to sqrt(a_u) make the sum of access delays least, whatever the number of users. It needs the
    features of set networks.

    With `keep_deadlines` users get at least the bandwidth that being in time takes: the link time over the time that
    generation and backhaul leave. Those who need most are given up where that is too much in all, or costs the others
    more than being late costs; so it is whatever the load. The softmax shares out what is above these floors, without
    those who are given up and would wait so long all the same that waiting longer costs nothing. It needs the features
    of set networks, too.

    Fewer than A1 steps bring no quality, so scaling all hits down alike wastes steps: with a short budget it is best
    to serve some hits fully and others not at all. Each hit asks for A3 sigmoid(step_scale output). If that is too
    much in all, one threshold theta is subtracted from all logits, and hits with the lowest logits drop out first.
    The scale is large so that the sigmoid saturates long before tanh: otherwise all outputs drift to 1 and tie.

    With `drop_wasted` decisions grant each hit that is served at least as many steps as bring the most quality each, or
    what it asks for if that is less; those of the lowest logits get none, but for one that gets what is left if that
    exceeds A1. Hits that would get no bandwidth come before all others: waiting for steps costs them nothing.
    Exploration and the critics do without: they learn sooner what steps bring where every hit gets some.
    """

    Config = CompetitiveHeadConfig

    # A fresh network starts at A3 sigmoid(3) steps for each hit. Below A1 steps bring no quality and the gradient is 0;
    # from the middle of the range, the first errors of a critic could push the actor there.
    GENEROUS = 3.0
    MARGIN = 1.005  # of the bandwidth that a deadline takes, for rounding
    SECTIONS, ROUNDS = 28, 3  # theta is found to 1/28^3 of its range, then refined by a Newton step

    def __init__(self, config: CompetitiveHeadConfig) -> None:
        self.scale = config.scale
        self.step_scale = config.step_scale
        self.square_root_law = config.square_root_law
        self.drop_wasted = config.drop_wasted
        self.keep_deadlines = config.keep_deadlines

    def __call__(self, output: Tensor, state: State) -> Tensor:
        steps = self._threshold(*self._asked(output, state))
        return raw_from_shares(torch.stack((self._bandwidth(output, steps, state), steps), -1))

    def decide(self, output: Tensor, state: State) -> Tensor:
        """As a call, without steps in vain if `drop_wasted` is set, and those first who wait in any case."""
        if not self.drop_wasted:
            return self(output, state)
        ask, most = self._asked(output, state)
        asked = most * ask.sigmoid()
        steps = self._without_waste(ask, asked, state)
        bandwidth = self._bandwidth(output, steps, state)
        # Who gets no bandwidth waits as long as counts: steps bring him quality and cost him nothing.
        waits = (bandwidth <= 0) & (steps <= 0) & state["hit"]
        if torch.compiler.is_exporting() or bool(waits.any()):
            first = self._without_waste(ask, most * waits, state)
            steps = first + self._without_waste(ask, asked * ~waits, state, first)
            bandwidth = self._bandwidth(output, steps, state)
        return raw_from_shares(torch.stack((bandwidth, steps), -1))

    def _asked(self, output: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Each user's logit of steps, and the most that a hit can use of the budget; [*, U]."""
        return self.step_scale * output[..., 1] + self.GENEROUS, state["full_share"] * state["hit"]

    def _bandwidth(self, output: Tensor, steps: Tensor, state: State) -> Tensor:
        """Shares of bandwidth [*, U] beside these steps [*, U]."""
        attached = state["attached"]
        logit = output[..., 0]
        count = attached.sum(-1, keepdim=True).clamp_min(1)
        logit = self.scale * (logit - (logit * attached).sum(-1, keepdim=True) / count)
        if self.square_root_law:
            logit = logit + 0.5 * UserFeatures.log_link(state["features"])
        shares = logit.masked_fill(~attached, -1e9).softmax(-1)
        return self._in_time(shares, steps, state) if self.keep_deadlines else shares

    def _in_time(self, shares: Tensor, steps: Tensor, state: State) -> Tensor:
        """Bandwidth [*, U] that is for each user who is kept at least what being in time takes."""
        attached = state["attached"]
        relative = torch.where(state["hit"], steps / state["full_share"], 1.0)  # the cloud runs full steps for a miss
        left = UserFeatures.time_left(state["features"], relative)
        link = UserFeatures.log_link(state["features"]).exp()
        need = self.MARGIN * link / left.clamp_min(1e-6)
        with torch.no_grad():
            kept = _worth_keeping(need, link, left, state["delay_cost"], shares, attached)

        def fed(got: Tensor) -> Tensor:
            # Delays count up to twice the deadline. A lone late user with twice the bandwidth at which that is reached
            # earns as much per bandwidth as any does; with less, what he gets is better spent on others.
            worth = kept | (got * (1 + left) >= 2 * link)
            return worth | ~worth.any(-1, keepdim=True)

        return _above(torch.where(kept, need, 0.0), shares, fed)

    def _threshold(self, logit: Tensor, most: Tensor) -> Tensor:
        """Most * sigmoid(logit - theta) with the least theta >= 0 at which it sums to 1 or less; [*, U]."""
        with torch.no_grad():
            binding = (most * logit.sigmoid()).sum(-1, keepdim=True) > 1
            theta = torch.where(binding, self._search(logit, most), 0.0)
        share = (logit - theta).sigmoid()
        # One Newton step in theta, with gradient: it carries how theta moves with the logits.
        slope = (most * share * (1 - share)).sum(-1, keepdim=True).clamp_min(1e-4)
        theta = theta + torch.where(binding, ((most * share).sum(-1, keepdim=True) - 1) / slope.detach(), 0.0)
        return most * (logit - theta).sigmoid()

    def _search(self, logit: Tensor, most: Tensor) -> Tensor:
        """A theta at most 1/28^3 of its range above the least at which what is asked for sums to 1 or less; [*, 1]."""
        theta = torch.zeros_like(logit[..., :1])
        width = 2 * self.step_scale + self.GENEROUS + 8.0  # beyond it nobody gets anything
        inside = torch.arange(1, self.SECTIONS, device=logit.device) / self.SECTIONS
        for _ in range(self.ROUNDS):  # the sum falls with theta: count the points where it is still too large
            asked = (logit.unsqueeze(-1) - (theta + width * inside).unsqueeze(-2)).sigmoid_()
            over = (most.unsqueeze(-1) * asked).sum(-2) > 1
            width /= self.SECTIONS
            theta = theta + width * over.sum(-1, keepdim=True)
        return theta + width

    def _without_waste(self, logit: Tensor, asked: Tensor, state: State, spent: Tensor | None = None) -> Tensor:
        """Shares [*, U] that are 0 or above the floor and, but for one, at least the efficient share or what is asked.

        What `spent` [*, U] leaves of the budget is shared out, or all of it.
        Hits are served in the order of their logits as long as that fits; of ties, the first users. What is left goes
        to those who are served up to what they ask for, or else to the next.
        """
        floor, budget = state["floor_share"], 1.0 if spent is None else 1 - spent.sum(-1, keepdim=True)
        least = torch.minimum(state["efficient_share"], asked) * (asked > floor)
        wants = logit.masked_fill(least <= 0, -torch.inf)
        if torch.compiler.is_exporting():  # ONNX has no stable sort by name, but the one it has is
            order = wants.sort(-1, descending=True).indices
        else:
            order = wants.sort(stable=True, dim=-1, descending=True).indices
        fits = torch.zeros_like(least).scatter(-1, order, least.gather(-1, order).cumsum(-1)) <= budget
        served = least * fits
        room = (asked - least) * (served > 0)
        rest = budget - served.sum(-1, keepdim=True)
        steps = served + room * (rest / room.sum(-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        left = torch.minimum(budget - steps.sum(-1, keepdim=True), asked)
        waiting = logit.masked_fill((served > 0) | (left <= floor), -torch.inf)
        next_one = torch.arange(logit.shape[-1], device=logit.device) == waiting.argmax(-1, keepdim=True)
        return torch.where(next_one & (waiting > -torch.inf), left, steps)


def _above(floor: Tensor, shares: Tensor, fed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """max(floor, c shares) with the c at which it sums to 1, [*, U]; floors sum to 1 or less, shares to 1.

    Where shares follow the square-root law, nothing above the floors makes the sum of access delays less. `fed` says
    of what everybody would get who gets something at all, bool [*, U]; those above a floor do.
    """
    with torch.no_grad():
        ratio, order = (floor / shares.clamp_min(1e-12)).sort(-1)  # in which users are lifted above their floors
        spare = 1 - floor.sum(-1, keepdim=True) + floor.gather(-1, order).cumsum(-1)

        def level(shares: Tensor) -> Tensor:
            reach = spare / shares.gather(-1, order).cumsum(-1).clamp_min(1e-12)
            count = (reach >= ratio).sum(-1, keepdim=True)
            return reach.gather(-1, (count - 1).clamp_min(0))

        c = level(shares)
        mask = None
        if fed is not None:
            mask = fed(torch.maximum(floor, c * shares))
            c = level(shares * mask)
        free = c * shares >= floor if mask is None else mask & (c * shares >= floor)
    rest, weight = 1 - (floor * ~free).sum(-1, keepdim=True), shares * free
    return torch.where(free, weight * (rest / weight.sum(-1, keepdim=True).clamp_min(1e-12)), floor)


CHOICES = 16  # of whom to keep: those who fit, or those less some of the neediest


def _worth_keeping(need: Tensor, link: Tensor, left: Tensor, cost: Tensor, shares: Tensor, there: Tensor) -> Tensor:
    """Whom to keep in time, bool [*, U]: those who need least, as many as earns most; what is left is shared by all.

    That is nearly always as many as fit, or a few less: of more than 16 users no more than 15 who would fit are given
    up, or all, so that time and memory grow with the users and not with their square.

    Args:
        need: bandwidth that being in time takes.
        link: access delay with all the bandwidth, over the deadline.
        left: what generation and backhaul leave of the deadline, over the deadline.
        cost: what a delay of the deadline costs, and what being late costs beside it, [*, U, 2].
        shares: by which all share what is left.
        there: who is attached; these and the first three [*, U].
    """
    possible = there & (left > 0)
    ascending = need.masked_fill(~possible, torch.inf).sort(-1).values
    fit = (ascending.cumsum(-1) <= 1).sum(-1, keepdim=True)
    choices = CHOICES if torch.compiler.is_exporting() else min(CHOICES, need.shape[-1])  # exported for any U
    last = (fit - 1 - torch.arange(choices, device=need.device)).clamp_min(0)
    kept = (need.unsqueeze(-2) <= ascending.gather(-1, last).unsqueeze(-1)) & possible.unsqueeze(-2)  # [*, k, U]
    rest = 1 - (need.unsqueeze(-2) * kept).sum(-1, keepdim=True)
    got = need.unsqueeze(-2) * kept + rest.clamp_min(0.0) * shares.unsqueeze(-2)
    latency = (left.unsqueeze(-2) - link.unsqueeze(-2) / got.clamp_min(1e-12)).clamp_min(-1.0)
    delay, late = cost.unbind(-1)
    earned = ((delay.unsqueeze(-2) * latency - late.unsqueeze(-2) * ~kept) * there.unsqueeze(-2)).sum(-1)
    most, best = earned.masked_fill(rest.squeeze(-1) < 0, -torch.inf).max(-1, keepdim=True)
    alone = ((delay * (left - link / shares.clamp_min(1e-12)).clamp_min(-1.0) - late) * there).sum(-1, keepdim=True)
    return kept.gather(-2, best.unsqueeze(-1).expand_as(kept[..., :1, :])).squeeze(-2) & (most > alone)
