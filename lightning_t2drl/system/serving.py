"""One slot of one cell: from a cache and an allocation to delays, quality and utility (system model, sections 4-7)."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.channel import access_time
from lightning_t2drl.system.scenario import Scenario


def hits(cache: Tensor, request: Tensor) -> Tensor:
    """Which requests find their model cached: bool [*, U] from cache [*, M] and request [*, U]."""
    return cache.gather(-1, request)


def serve(
    scenario: Scenario,
    request: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    gain: Tensor,
    cache: Tensor,
    bandwidth: Tensor,
    steps: Tensor,
    attached: Tensor | None = None,
) -> TensorDict:
    """Serve one slot's requests of one cell.

    Args:
        scenario: the world's constants, on the same device as the tensors.
        request: requested model, int64 [*, U].
        input_bits, output_bits: payloads, bit [*, U].
        gain: linear power gain to the station [*, U].
        cache: which models the cell holds, bool [*, M].
        bandwidth: share b_u of the cell's bandwidth [*, U], 0 to 1.
        steps: denoising steps xi_u L granted to hits [*, U]; ignored for misses.
        attached: users of this cell, bool [*, U]; all when left out. Every output of another user is 0.

    Returns:
        A TensorDict of batch size [*] with, per user [*, U]: `hit`, `access_delay`, `generation_delay`,
        `backhaul_delay`, `delay` (s), `tv` (the service's own metric), `quality` (q), `latency` (l), `violated`
        (delay > deadline) and `utility` = alpha q + (1 - alpha) l - chi [violated]. A share of 0 gives an
        infinite access delay, whose latency score is -1.
    """
    hit = hits(cache, request)
    miss = ~hit if attached is None else ~hit & attached
    curve = service.profile(scenario, request)
    steps = torch.where(hit, steps, curve.full_steps)  # the cloud runs A3 steps for a miss
    quality = service.quality_score(curve, steps)
    access = access_time(scenario, gain, input_bits, output_bits) / bandwidth
    generation = service.generation_delay(curve, steps)
    payload_time = (input_bits + output_bits) * miss / scenario.backhaul_rate
    backhaul = payload_time * miss.sum(-1, keepdim=True)
    delay = access + generation + backhaul
    violated = delay > scenario.deadline
    latency = torch.rsub(delay / scenario.deadline, 1).clamp_min_(-1.0)
    utility = (scenario.alpha * quality).add(latency, alpha=1 - scenario.alpha)
    utility = utility.add_(violated, alpha=-scenario.deadline_penalty)
    out = {
        "hit": hit,
        "access_delay": access,
        "generation_delay": generation,
        "backhaul_delay": backhaul,
        "delay": delay,
        "tv": service.raw_metric(curve, quality),
        "quality": quality,
        "latency": latency,
        "violated": violated,
        "utility": utility,
    }
    if attached is not None:
        out = {key: torch.where(attached, value, torch.zeros_like(value)) for key, value in out.items()}
    return TensorDict(out, batch_size=request.shape[:-1], device=request.device)


def cell_mean(value: Tensor, attached: Tensor | None) -> Tensor:
    """Mean over a cell's users (None: all), 0 for a cell that has none: [*] from [*, U]."""
    if attached is None:
        return value.mean(-1)
    return (value * attached).sum(-1) / attached.sum(-1).clamp_min(1)
