"""Quality, delay and worth of a service by its denoising steps: the fitted curves (docs/concepts/system.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

Value = float | Tensor  # one number for all models, or a tensor where they differ


class Profile(NamedTuple):
    """Each request's service, [*] by parameter; numbers where all services have the same."""

    floor_steps: Tensor  # A1
    worst_metric: Tensor  # A2
    full_steps: Tensor  # A3
    best_metric: Tensor  # A4
    seconds_per_step: Tensor  # B1
    base_seconds: Tensor  # B2
    pieces: Tensor | None  # of the quality curve [*, P, 3], see `Scenario.curve_pieces`
    alpha: Value
    deadline: Value  # tau, s
    penalty: Value  # chi


def of_model(value: Value, model: Tensor) -> Value:
    """What models, int64 [*], have of a quantity: the one number, or [*] from one per model [M]."""
    return value[model] if isinstance(value, Tensor) else value


def profile(scenario: Scenario, model: Tensor) -> Profile:
    """The profiles of models, int64 [*]."""
    table = scenario.service_table
    floor, worst, full, best, per_step, base = table.index_select(1, model.flatten()).view(-1, *model.shape).unbind()
    pieces = scenario.curve_pieces
    return Profile(
        floor_steps=floor,
        worst_metric=worst,
        full_steps=full,
        best_metric=best,
        seconds_per_step=per_step,
        base_seconds=base,
        pieces=None if pieces is None else pieces[model],
        alpha=of_model(scenario.alpha, model),
        deadline=of_model(scenario.deadline, model),
        penalty=of_model(scenario.deadline_penalty, model),
    )


def steps_of(scenario: Scenario, model: Tensor, share: Tensor) -> Tensor:
    """The steps x = xi L / cost that shares of the budget buy, [*] like the models that they are for."""
    return share * of_model(scenario.budget_steps, model)


def quality_score(curve: Profile, steps: Tensor) -> Tensor:
    """Score q of the metric in [0, 1]: 0 up to A1 steps, 1 from A3 on, piecewise linear and concave between; [*]."""
    if curve.pieces is None:
        return ((steps - curve.floor_steps) / (curve.full_steps - curve.floor_steps)).clamp(0.0, 1.0)
    start, score, rise = curve.pieces.unbind(-1)
    return (score + (steps.unsqueeze(-1) - start) / rise).amin(-1).clamp(0.0, 1.0)


def raw_metric(curve: Profile, quality: Tensor) -> Tensor:
    """The service's own metric, such as the paper's TV, from its quality score; [*]."""
    return torch.lerp(curve.worst_metric, curve.best_metric, quality)


def generation_delay(curve: Profile, steps: Tensor) -> Tensor:
    """D_gen(x) = B1 x + B2 in s; [*]."""
    return torch.addcmul(curve.base_seconds, curve.seconds_per_step, steps)


def utility(curve: Profile, quality: Tensor, latency: Tensor, violated: Tensor) -> Tensor:
    """Alpha q + (1 - alpha) l - chi [violated]; [*]."""
    out = curve.alpha * quality
    if isinstance(curve.alpha, Tensor):
        out = out + (1 - curve.alpha) * latency
    else:
        out = out.add(latency, alpha=1 - curve.alpha)
    if isinstance(curve.penalty, Tensor):
        return out - curve.penalty * violated
    return out.add_(violated, alpha=-curve.penalty)
