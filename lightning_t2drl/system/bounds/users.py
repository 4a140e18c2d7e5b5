"""A slot's problem as data per user; see `slot` for the derivation."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import Value
from lightning_t2drl.system.serving import backhaul_delay, hits, nearby_misses

# `serve` works in float32. The bound counts delays slightly over the deadline as met and is rounded up; allocations
# leave a little of the deadline and of the bandwidth unused.
BOUND_LENIENCE, DEADLINE_SLACK, BANDWIDTH_SLACK = 1e-6, 2e-5, 1e-6
STARVED, LATE, ON_TIME = 0, 1, 2
CLOSE = 1e-6  # a gap in utility per user too small to search for
TINY = 1e-300
NEVER = 1e30  # s; a link without any power takes infinitely long


class Plan(NamedTuple):
    """What the users of n slots get, [n, U] each."""

    bandwidth: Tensor
    steps: Tensor  # in units of the budget
    mode: Tensor  # STARVED, LATE or ON_TIME

    def rows(self, index: Tensor) -> Plan:
        """The same of some slots only."""
        return Plan(*(part[index] for part in self))


@dataclass
class Users:
    """The inner problem's data per user, float64 [n, U]; numbers where all services have the same.

    Steps x are counted in units of the budget: A1, A3 and B1 are those of a service's steps, times or over their cost.
    """

    link: Tensor  # a_u, s
    fixed: Tensor  # delay beyond access at 0 steps (hit), or altogether (miss), s
    hit: Tensor
    attached: Tensor
    floor: Tensor  # A1
    full: Tensor  # A3
    start: Tensor  # where each linear piece of the quality curve begins, [n, U, P]; the first at A1
    score: Tensor  # the quality there, likewise
    rise: Tensor  # steps per unit of quality on it; falling, so that quality is the least of the pieces
    per_step: Tensor  # B1, s
    alpha: Value
    deadline: Value  # s
    penalty: Value
    budget: float  # L
    in_time: Value  # what counts as meeting the deadline, s

    @property
    def weight(self) -> Tensor:
        """(1 - alpha) a_u / tau: utility lost per unit of 1 / b."""
        return (1 - self.alpha) * self.link / self.deadline

    @property
    def alike(self) -> bool:
        """Whether all services are of one kind, by what tells them apart here."""
        same = self.start.shape[-1] == 1 and bool((self.full == self.full[:1, :1]).all())
        return same and not any(isinstance(value, Tensor) for value in (self.alpha, self.deadline, self.penalty))

    def quality(self, x: Tensor) -> Tensor:
        lines = zip(*(part.unbind(-1) for part in (self.start, self.score, self.rise)), strict=True)
        least = reduce(torch.minimum, [score + (x - start) / rise for start, score, rise in lines])
        return torch.where(self.hit, least.clamp(0, 1), 1.0)

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

    def rows(self, index: Tensor) -> Users:
        """The same of some slots only."""
        cut: dict[str, Any] = {f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **cut)


def users_of(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    attached: Tensor,
    uplink_interference: Tensor | None = None,
    downlink_interference: Tensor | None = None,
    handover: Tensor | None = None,
    nearby: Tensor | None = None,
) -> Users:
    """The users of n slots, arguments as for `slot_bound`."""
    hit = hits(cache, request) & attached
    near = nearby_misses(scenario, hit, request, attached, nearby)
    waits = backhaul_delay(scenario, hit, input_bits.double() + output_bits.double(), attached, near)
    if handover is not None:
        waits = waits + scenario.handover_delay * handover
    link = access_time(scenario, gain, input_bits, output_bits, uplink_interference, downlink_interference)
    curve = service.profile(scenario, request)
    cost = _double(service.of_model(scenario.step_cost, request))
    floor, full = curve.floor_steps.double() * cost, curve.full_steps.double() * cost
    beyond = service.generation_delay(curve, torch.where(hit, 0.0, curve.full_steps.double()))
    if curve.pieces is None:
        start, score, rise = floor.unsqueeze(-1), torch.zeros_like(floor).unsqueeze(-1), (full - floor).unsqueeze(-1)
    else:
        start, score, rise = curve.pieces.double().unbind(-1)
        by_cost = cost.unsqueeze(-1) if isinstance(cost, Tensor) else cost
        start, rise = start * by_cost, rise * by_cost
    deadline = _double(curve.deadline)
    return Users(
        link=link.double().clamp_max(NEVER),
        fixed=beyond.double() + waits,
        hit=hit,
        attached=attached,
        floor=floor,
        full=full,
        start=start,
        score=score,
        rise=rise,
        per_step=curve.seconds_per_step.double() / cost,
        alpha=_double(curve.alpha),
        deadline=deadline,
        penalty=_double(curve.penalty),
        budget=scenario.step_budget,
        in_time=deadline * (1 + BOUND_LENIENCE),
    )


def _double(value: Value) -> Value:
    return value.double() if isinstance(value, Tensor) else value


def put(plan: Plan, rows: Tensor, part: Plan) -> Plan:
    """A copy of the plan with some slots' replaced."""
    return Plan(*(old.index_copy(0, rows, new) for old, new in zip(plan, part, strict=True)))


def choose(first: Tensor, plan: Plan, other: Plan) -> Plan:
    """Slot by slot the one plan or the other, by bool [n]."""
    return Plan(*(torch.where(first.unsqueeze(-1), a, b) for a, b in zip(plan, other, strict=True)))
