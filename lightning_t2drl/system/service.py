"""Quality and delay of a service by its denoising steps: the fitted curves (docs/concepts/system.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


class Profile(NamedTuple):
    """Each request's quality and delay curve, [*] by parameter."""

    floor_steps: Tensor  # A1
    worst_metric: Tensor  # A2
    full_steps: Tensor  # A3
    best_metric: Tensor  # A4
    seconds_per_step: Tensor  # B1
    base_seconds: Tensor  # B2


def profile(scenario: Scenario, model: Tensor) -> Profile:
    """The profiles of models, int64 [*]."""
    return Profile(*torch.nn.functional.embedding(model, scenario.service_table).unbind(-1))


def quality_score(curve: Profile, steps: Tensor) -> Tensor:
    """Q = (TV(x) - A2) / (A4 - A2) in [0, 1]: 0 up to A1 steps, 1 from A3 on, linear between; [*]."""
    return ((steps - curve.floor_steps) / (curve.full_steps - curve.floor_steps)).clamp(0.0, 1.0)


def raw_metric(curve: Profile, quality: Tensor) -> Tensor:
    """TV(x) of the paper (or another service's own metric) from its quality score; [*]."""
    return torch.lerp(curve.worst_metric, curve.best_metric, quality)


def generation_delay(curve: Profile, steps: Tensor) -> Tensor:
    """D_gen(x) = B1 x + B2 in s; [*]."""
    return curve.seconds_per_step * steps + curve.base_seconds
