"""One slot of one cell: from a cache and an allocation to delays, quality and utility (docs/concepts/system.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.scenario import Scenario

SITUATION = (
    *("request", "input_bits", "output_bits", "gain", "cache", "attached"),
    *("uplink_interference", "downlink_interference", "handover", "nearby"),  # of several cells only
)


def hits(cache: Tensor, request: Tensor) -> Tensor:
    """Which requests find their model cached: bool [*, U] from cache [*, M] and request [*, U]."""
    return cache.gather(-1, request)


def nearby_misses(
    scenario: Scenario, hit: Tensor, request: Tensor, attached: Tensor | None, nearby: Tensor | None
) -> Tensor | None:
    """Misses served by another cell over the edge link, bool [*, U]; None where there is no such link."""
    if nearby is None or scenario.edge_link_rate is None:
        return None
    near = ~hit & nearby.gather(-1, request)
    return near if attached is None else near & attached


def backhaul_delay(
    scenario: Scenario, hit: Tensor, payload: Tensor, attached: Tensor | None, near: Tensor | None
) -> Tensor:
    """What a miss waits for its way to the cloud, or to another cell's model, s [*, U]; 0 for hits.

    Misses of one kind share their link: payload x their number / rate.

    Args:
        hit, attached: bool [*, U].
        payload: d_in + d_out, bit [*, U].
        near: misses that take the edge link, see `nearby_misses`.
    """
    miss = ~hit if attached is None else ~hit & attached
    far = miss if near is None else miss & ~near
    delay = payload * far * (far.sum(-1, keepdim=True) / scenario.backhaul_rate)
    if near is not None and scenario.edge_link_rate is not None:
        delay = delay + payload * near * (near.sum(-1, keepdim=True) / scenario.edge_link_rate)
    return delay


def situation(cell: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of a cell's observation what `serve` and `slot_bound` take, by the names of their arguments."""
    return {key: value for key in SITUATION if (value := cell.get(key, None)) is not None}


def serve(scenario: Scenario, request: Tensor, *given: Any, **more: Any) -> TensorDict:
    """What `outcome` says, as a TensorDict of batch size [*]; with `tv`, which is `metric` by its former name, for one
    release.
    """
    out = outcome(scenario, request, *given, **more)
    return TensorDict(out | {"tv": out["metric"]}, batch_size=request.shape[:-1], device=request.device)


def outcome(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    bandwidth: Tensor,
    steps: Tensor,
    attached: Tensor | None = None,
    uplink_interference: Tensor | None = None,
    downlink_interference: Tensor | None = None,
    handover: Tensor | None = None,
    nearby: Tensor | None = None,
) -> dict[str, Tensor]:
    """Serve one slot's requests of one cell.

    Args:
        scenario: the world's constants, on the same device as the tensors.
        request: requested model, int64 [*, U].
        input_bits, output_bits: payloads, bit [*, U].
        gain: linear power gain to the station [*, U].
        cache: which models the cell holds, bool [*, M].
        bandwidth: share b_u of the cell's bandwidth [*, U], 0 to 1.
        steps: denoising steps xi_u L / cost granted to hits [*, U], see `service.steps_of`; ignored for misses.
        attached: users of this cell, bool [*, U]; all when left out. Every output of another user is 0.
        uplink_interference, downlink_interference: what other cells add to the noise at the station, W [*], and at
            the users, W [*, U]; nothing when left out.
        handover: users that this cell took over in this slot, bool [*, U]: their delay grows by `handover_delay`.
        nearby: models that another cell holds, bool [*, M]. With `edge_link_rate` a miss of such a model is fetched
            from there: its backhaul delay is payload x n_near / R_edge, n_near being the cell's misses so served.

    Returns:
        Per user [*, U]: `hit`, `access_delay`, `generation_delay`,
        `backhaul_delay`, `delay` (s), `metric` (the service's own), `quality` (q), `latency` (l), `violated`
        (delay > deadline) and `utility` = alpha q + (1 - alpha) l - chi [violated], by the service's own values.
        A share of 0 gives an infinite access delay, whose latency score is -1. With `handover` and `nearby` also
        these, per user.
    """
    hit = hits(cache, request)
    curve = service.profile(scenario, request)
    steps = torch.where(hit, steps, curve.full_steps)  # the cloud runs A3 steps for a miss
    quality = service.quality_score(curve, steps)
    link = access_time(scenario, gain, input_bits, output_bits, uplink_interference, downlink_interference)
    access = link / bandwidth
    generation = service.generation_delay(curve, steps)
    near = nearby_misses(scenario, hit, request, attached, nearby)
    backhaul = backhaul_delay(scenario, hit, input_bits + output_bits, attached, near)
    delay = (access + generation).add_(backhaul)
    if handover is not None:
        delay = delay + scenario.handover_delay * handover
    violated = delay > curve.deadline
    latency = torch.rsub(delay / curve.deadline, 1).clamp_min_(-1.0)
    out = {
        "hit": hit,
        "access_delay": access,
        "generation_delay": generation,
        "backhaul_delay": backhaul,
        "delay": delay,
        "metric": service.raw_metric(curve, quality),
        "quality": quality,
        "latency": latency,
        "violated": violated,
        "utility": service.utility(curve, quality, latency, violated),
    }
    out |= {key: value for key, value in (("handover", handover), ("nearby", near)) if value is not None}
    if attached is not None:
        out = {key: _only(attached, value) for key, value in out.items()}
    return out


def _only(attached: Tensor, value: Tensor) -> Tensor:
    """The value of attached users, 0 of others; flags without `where`, which ONNX Runtime has for numbers only."""
    return value & attached if value.dtype == torch.bool else torch.where(attached, value, torch.zeros_like(value))


def cell_mean(value: Tensor, attached: Tensor | None) -> Tensor:
    """Mean over a cell's users (None: all), 0 for a cell that has none: [*] from [*, U]."""
    if attached is None:
        return value.mean(-1)
    return (value * attached).sum(-1) / attached.sum(-1).clamp_min(1)
