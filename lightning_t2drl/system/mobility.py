"""Where users are and how they move (docs/concepts/system.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.noise import in_planes, number
from lightning_t2drl.system.scenario import Scenario


def uniform_position(scenario: Scenario, uniform: Tensor) -> Tensor:
    """Positions uniform over the users' disc outside `min_distance` of its centre, m [*, 2], from uniform numbers."""
    inner, outer = scenario.min_distance**2, scenario.area_radius**2
    distance = (inner + (outer - inner) * uniform[..., 0]).sqrt()
    angle = 2 * torch.pi * uniform[..., 1]
    return in_planes(distance * angle.cos(), distance * angle.sin()) + scenario.centre


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
    a, rim = scenario.mobility_memory, scenario.area_radius
    velocity = torch.lerp(mean_velocity, velocity, a).add_(noise, alpha=scenario.speed_deviation * (1 - a * a) ** 0.5)
    offset = torch.add(position, velocity, alpha=scenario.slot_duration) - scenario.centre
    x, y = offset.unbind(-1)
    distance = torch.hypot(x, y).clamp_min_(1e-9)
    outside = distance > number(rim)
    # Reflected between both ends of a diameter, a path is a triangle wave of period 4R, however long the step.
    folded = number(rim) - ((distance + number(rim)) % number(4 * rim)).sub_(number(2 * rim)).abs_()
    scale = torch.where(outside, folded, distance).div_(distance)
    position = (offset * scale.unsqueeze(-1)).add_(scenario.centre)

    def bounce(v: Tensor) -> Tensor:
        """Turn v round at the edge, whose normal is n, to v - 2 (v n) n for who is outside."""
        along, across = v.unbind(-1)
        radial = (along * x).addcmul_(across, y).div_(distance * distance).mul_(outside)
        return v.addcmul(offset, radial.unsqueeze(-1), value=-2)

    return position, bounce(velocity), bounce(mean_velocity) if scenario.mean_speed else mean_velocity
