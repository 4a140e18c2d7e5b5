"""What is reported of served slots: means over the users present, and over the requests of each service."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import of_model

# A bandwidth share of 0 means an infinite delay; in means it counts as this many deadlines.
DELAY_CAP = 10.0

MEANS = (
    ("utility", "utility"),
    ("hit_ratio", "hit"),
    ("violation_ratio", "violated"),
    ("quality", "quality"),
)
OPTIONAL = (("handover_ratio", "handover"), ("nearby_ratio", "nearby"))  # of several cells
DELAY_PARTS = ("access_delay", "generation_delay", "backhaul_delay")
DELAYS = ("delay", *DELAY_PARTS)
OF_SERVICE = (("hit_ratio", "hit"), ("violation_ratio", "violated"), ("quality", "quality"), ("metric", "metric"))


def slot_metrics(
    scenario: Scenario, served: Mapping[str, Tensor], attached: Tensor, request: Tensor | None = None
) -> dict[str, Tensor]:
    """Means over the users present, one value per world.

    Args:
        served: what `serve` returned [N, B].
        attached: bool [N, B, U].
        request: int64 [N, B, U]; only needed where services differ in their deadlines or weights.

    Returns:
        [N] each: `utility`, `hit_ratio`, `violation_ratio`, `quality`, `delay` and its parts (s) and, with several
        cells, `handover_ratio` (users taken over in the slot) and, with an edge link, `nearby_ratio` (users served from
        another cell's model). Where all services have one metric also the `metric` and the paper's `weighted_cost`
        alpha metric + (1 - alpha) D.
    """
    deadline, alpha = (_of_user(value, request) for value in (scenario.deadline, scenario.alpha))
    optional = [(name, key) for name, key in OPTIONAL if served.get(key, None) is not None]
    values = {name: served[key].float() for name, key in (*MEANS, *optional)}
    delays = torch.stack([served[key] for key in DELAYS])
    values |= zip(DELAYS, _capped(delays, DELAY_CAP * deadline).unbind(), strict=True)
    if len(set(scenario.metrics)) == 1:
        values["metric"] = served["metric"]
        if isinstance(alpha, Tensor):
            values["weighted_cost"] = alpha * values["metric"] + (1 - alpha) * values["delay"]
    users = attached.sum((-1, -2)).clamp_min(1)
    means = torch.stack(list(values.values())).sum((-1, -2)) / users
    out = dict(zip(values, means.unbind(), strict=True))
    if "metric" in out and not isinstance(alpha, Tensor):
        out["weighted_cost"] = alpha * out["metric"] + (1 - alpha) * out["delay"]
    return out


def service_sums(
    scenario: Scenario, served: Mapping[str, Tensor], attached: Tensor, request: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """What becomes a mean over requests once a whole episode is summed: numerator and denominator, [N] each.

    `wasted_steps` is the share of the hits with steps that bring no quality, as they do not exceed the service's floor.
    Where there are several services also, by service, `hit_ratio`, `violation_ratio`, `quality`, `metric` and `delay`,
    as `quality/text`.
    """

    def total(value: Tensor, where: Tensor) -> Tensor:
        return (value * where).sum((-1, -2))

    hit = served["hit"] & attached
    granted = hit & (served["shares"][..., 1] > 0)
    out = {"wasted_steps": (total(served["quality"] == 0, granted), hit.sum((-1, -2)).clamp_min(1))}
    kinds = tuple(dict.fromkeys(scenario.services))
    if len(kinds) == 1:
        return out
    kind = torch.tensor([kinds.index(service) for service in scenario.services], device=request.device)[request]
    delay = _capped(served["delay"], DELAY_CAP * _of_user(scenario.deadline, request))
    for number, name in enumerate(kinds):
        mine = attached & (kind == number)
        count = mine.sum((-1, -2))
        out |= {f"{metric}/{name}": (total(served[key], mine), count) for metric, key in OF_SERVICE}
        out[f"delay/{name}"] = (total(delay, mine), count)
    return out


def _of_user(value: float | Tensor, request: Tensor | None) -> float | Tensor:
    if request is None:
        if isinstance(value, Tensor):
            raise ValueError("request: missing; services differ in what the metrics need")
        return value
    return of_model(value, request)


def _capped(delay: Tensor, cap: float | Tensor) -> Tensor:
    return torch.minimum(delay, cap) if isinstance(cap, Tensor) else delay.clamp_max(cap)
