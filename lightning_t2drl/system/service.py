"""What denoising steps buy and cost: the fitted quality and delay curves (system model, section 5)."""

from __future__ import annotations

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


def quality_score(scenario: Scenario, model: Tensor, steps: Tensor) -> Tensor:
    """Q = (TV(x) - A2) / (A4 - A2) in [0, 1]: 0 up to A1 steps, 1 from A3 on, linear between; [*]."""
    floor, full = scenario.floor_steps[model], scenario.full_steps[model]
    return ((steps - floor) / (full - floor)).clamp(0.0, 1.0)


def raw_metric(scenario: Scenario, model: Tensor, quality: Tensor) -> Tensor:
    """TV(x) of the paper (or another service's own metric) from its quality score; [*]."""
    worst = scenario.worst_metric[model]
    return worst + (scenario.best_metric[model] - worst) * quality


def generation_delay(scenario: Scenario, model: Tensor, steps: Tensor) -> Tensor:
    """D_gen(x) = B1 x + B2 in s; [*]."""
    return scenario.seconds_per_step[model] * steps + scenario.base_seconds[model]
