"""Where users are and how they move (docs/concepts/system.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


def uniform_position(scenario: Scenario, uniform: Tensor) -> Tensor:
    """Positions uniform over the users' disc outside `min_distance` of its centre, m [*, 2], from uniform numbers."""
    inner, outer = scenario.min_distance**2, scenario.area_radius**2
    distance = (inner + (outer - inner) * uniform[..., 0]).sqrt()
    angle = 2 * torch.pi * uniform[..., 1]
    return torch.stack((distance * angle.cos(), distance * angle.sin()), -1) + scenario.centre


def move(
    scenario: Scenario, position: Tensor, velocity: Tensor, mean_velocity: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One Gauss-Markov step inside the disc; a user who would leave it is reflected at its edge.

    v' = a v + (1-a) v_mean + s sqrt(1-a^2) w, then position += v' x slot duration.

    Args:
        position, velocity, mean_velocity: [*, 2], m and m/s.
        noise: [*, 2], standard normal.

    Returns:
        The next position, velocity and mean velocity; position is at most `area_radius` from `centre`.
    """
    rim = scenario.area_radius
    a = scenario.mobility_memory
    velocity = (a * velocity).add_(noise, alpha=scenario.speed_deviation * (1 - a * a) ** 0.5)
    if scenario.mean_speed:
        velocity = velocity + (1 - a) * mean_velocity
    position = position.add(velocity, alpha=scenario.slot_duration) - scenario.centre
    distance = torch.linalg.vector_norm(position, dim=-1, keepdim=True)
    radial = position / distance.clamp_min(1e-9)
    outside = distance > rim
    # Reflected between both ends of a diameter, a path is a triangle wave of period 4R, however long the step.
    folded = rim - ((distance + rim) % (4 * rim) - 2 * rim).abs()
    position = torch.where(outside, radial * folded, position) + scenario.centre
    normal = radial * outside  # of the edge, 0 for those inside

    def bounce(v: Tensor) -> Tensor:
        return v.addcmul((v * normal).sum(-1, keepdim=True), normal, value=-2)

    return position, bounce(velocity), bounce(mean_velocity) if scenario.mean_speed else mean_velocity
