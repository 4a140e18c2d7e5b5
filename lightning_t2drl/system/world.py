"""The world's state and how it moves on: pure tensor functions, with all noise drawn outside."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.channel import path_gain, rician_power
from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.mobility import move, uniform_position
from lightning_t2drl.system.scenario import Scenario

# `slot` int64 [N] (of the episode), `popularity` int64 [N, B], `position`, `velocity`, `mean_velocity` [N, U, 2], and
# the slot's demand and channel, see `new_slot`.
State = dict[str, Tensor]


class Noise(NamedTuple):
    """What is random about one slot."""

    popularity: Tensor  # uniform [N, B]
    demand: Tensor  # uniform [N, 3, U]: request, input, output
    mobility: Tensor  # normal [N, U, 2]
    fading: Tensor  # normal [N, U, 2]


def draw_noise(scenario: Scenario, envs: int, generator: torch.Generator) -> Tensor:
    """Everything random about one slot: uniform numbers [N, B + 7 U] in one draw, one row per world.

    From the same generator state, the first worlds get the same numbers however many there are (on the CPU).
    """
    return torch.rand(envs, _columns(scenario), generator=generator, device=generator.device)


def _columns(scenario: Scenario) -> int:
    return scenario.cells + 7 * scenario.users


def split_noise(scenario: Scenario, uniform: Tensor) -> Noise:
    """What `draw_noise` drew, by purpose."""
    popularity, rest = uniform.tensor_split((scenario.cells,), -1)
    rest = rest.unflatten(-1, (7, scenario.users))
    mobility, fading = normal_pairs(rest[:, 3:5], rest[:, 5:]).unbind(1)
    return Noise(popularity, rest[:, :3], mobility, fading)


def normal_pairs(uniform: Tensor, other: Tensor) -> Tensor:
    """Pairs of independent standard normal numbers [*, 2] from uniform ones [*] (Box and Muller)."""
    radius = torch.log1p(-uniform).mul_(-2).sqrt_()
    return torch.view_as_real(torch.polar(radius, other * (2 * math.pi)))


def initial_state(scenario: Scenario, envs: int, generator: torch.Generator) -> State:
    """Worlds at the first slot of an episode.

    The popularity state starts in the chain's uniform distribution; users stand uniformly in the disc and walk
    with velocities from the stationary distribution of their mobility.
    """
    sizes = (scenario.cells, 5 * scenario.users, _columns(scenario))
    uniform = torch.rand(envs, sum(sizes), generator=generator, device=generator.device)
    start, rest, slot_noise = uniform.split(sizes, -1)
    rest = rest.unflatten(-1, (5, scenario.users))
    popularity = (start * scenario.popularity_states).long()
    heading = 2 * math.pi * rest[:, 2]
    mean_velocity = scenario.mean_speed * torch.stack((heading.cos(), heading.sin()), -1)
    position = uniform_position(scenario, rest[:, :2].transpose(1, 2))
    state = {
        "slot": torch.zeros(envs, dtype=torch.int64, device=generator.device),
        "popularity": popularity,
        "position": position,
        "velocity": mean_velocity + scenario.speed_deviation * normal_pairs(rest[:, 3], rest[:, 4]),
        "mean_velocity": mean_velocity,
    }
    return state | new_slot(scenario, popularity, position, split_noise(scenario, slot_noise))


def advance(scenario: Scenario, state: State, uniform: Tensor) -> State:
    """The worlds one slot later: users move, popularity may change, new requests come, fading is drawn anew.

    Args:
        scenario: the world's constants.
        state: the worlds now.
        uniform: what `draw_noise` drew for the next slot.
    """
    noise = split_noise(scenario, uniform)
    slot = state["slot"] + 1
    jump = inverse_cdf(scenario.transition_cdf[state["popularity"]], noise.popularity.unsqueeze(-1)).squeeze(-1)
    changes = (slot % scenario.popularity_change_every == 0).unsqueeze(-1)
    popularity = torch.where(changes, jump, state["popularity"])
    position, velocity, mean_velocity = move(
        scenario, state["position"], state["velocity"], state["mean_velocity"], noise.mobility
    )
    following = {
        "slot": slot,
        "popularity": popularity,
        "position": position,
        "velocity": velocity,
        "mean_velocity": mean_velocity,
    }
    return following | new_slot(scenario, popularity, position, noise)


def new_slot(scenario: Scenario, popularity: Tensor, position: Tensor, noise: Noise) -> State:
    """One slot's demand and channel as each cell sees them, [N, B, U] by name.

    Every user is attached to the one cell (B = 1); the cell dimension is there for all that follows.
    """
    shape = (len(position), scenario.cells, scenario.users)
    ask, sizes = noise.demand[:, 0], noise.demand[:, 1:]
    # One cell: a user's requests follow that cell's popularity.
    request = inverse_cdf(scenario.request_cdf[popularity[:, 0]], ask)
    least, spread = scenario.payload_ranges
    input_bits, output_bits = torch.addcmul(least, sizes, spread).unbind(1)
    distance = torch.linalg.vector_norm(position, dim=-1)
    gain = path_gain(scenario, distance) * rician_power(scenario.rician_factor, noise.fading)
    per_cell = {"request": request, "input_bits": input_bits, "output_bits": output_bits, "gain": gain}
    out = {key: value.unsqueeze(1).expand(shape) for key, value in per_cell.items()}
    return out | {"attached": torch.ones(shape, dtype=torch.bool, device=position.device)}
