"""The state of the worlds and how it changes: pure tensor functions of noise that is drawn outside."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.cells import attach, interference, members
from lightning_t2drl.system.channel import path_gain, rician_power
from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.mobility import move, uniform_position
from lightning_t2drl.system.scenario import Scenario

# `slot` int64 [N] (of the episode), `popularity` int64 [N, B], `position`, `velocity`, `mean_velocity` [N, U, 2], what
# `new_slot` returns and, where they are not trivial, `present` bool [N, U], `serving` int64 [N, U] (the station, -1 for
# who is absent) and `shadowing` [N, B, U] (in standard deviations).
State = dict[str, Tensor]


class Noise(NamedTuple):
    """The random numbers of one slot."""

    popularity: Tensor  # uniform [N, chains]
    demand: Tensor  # uniform [N, 3, U]: request, input, output
    mobility: Tensor  # normal [N, U, 2]
    fading: Tensor  # normal [N, B, U, 2]
    shadowing: Tensor  # normal [N, B, U], or [N, 0, U] without shadowing
    turnover: Tensor  # uniform [N, 1, U]: who comes and goes; [N, 0, U] where nobody does


def draw_noise(scenario: Scenario, envs: int, generator: torch.Generator) -> Tensor:
    """The random numbers of one slot, uniform [N, columns] in one draw, one row per world.

    From the same generator state, the first worlds get the same numbers however many there are (on the CPU).
    """
    return torch.rand(envs, _columns(scenario), generator=generator, device=generator.device)


def _pairs(scenario: Scenario) -> int:
    """Pairs of normal numbers per user and slot: a step, the fading of each link, and shadowing."""
    return 1 + scenario.cells * (2 if scenario.shadowing_db else 1)


def _turnover(scenario: Scenario) -> bool:
    return not scenario.everyone_present and bool(scenario.arrival_rate or scenario.departure_rate)


def _columns(scenario: Scenario) -> int:
    return scenario.chains + (3 + 2 * _pairs(scenario) + _turnover(scenario)) * scenario.users


def split_noise(scenario: Scenario, uniform: Tensor) -> Noise:
    """The numbers of `draw_noise`, by purpose."""
    popularity, rest = uniform.tensor_split((scenario.chains,), -1)
    pairs, cells = _pairs(scenario), scenario.cells
    demand, first, second, turnover = rest.unflatten(-1, (-1, scenario.users)).tensor_split(
        (3, 3 + pairs, 3 + 2 * pairs), 1
    )
    normal = normal_pairs(first, second)
    return Noise(popularity, demand, normal[:, 0], normal[:, 1 : 1 + cells], normal[:, 1 + cells :, :, 0], turnover)


def normal_pairs(uniform: Tensor, other: Tensor) -> Tensor:
    """Pairs of independent standard normal numbers [*, 2] from uniform ones [*] (Box and Muller)."""
    radius = torch.log1p(-uniform).mul_(-2).sqrt_()
    return torch.view_as_real(torch.polar(radius, other * (2 * math.pi)))


def initial_state(scenario: Scenario, envs: int, generator: torch.Generator) -> State:
    """Worlds at the first slot of an episode.

    The popularity state starts in the chain's uniform distribution; users stand uniformly in the disc and walk
    with velocities from the stationary distribution of their mobility. With `active_users` the first users are there,
    as many as a uniform whole number from that range says.
    """
    counted = scenario.active_users is not None
    sizes = (scenario.chains, 5 * scenario.users, _columns(scenario), int(counted))
    uniform = torch.rand(envs, sum(sizes), generator=generator, device=generator.device)
    start, rest, slot_noise, count = uniform.split(sizes, -1)
    rest = rest.unflatten(-1, (5, scenario.users))
    popularity = (start * scenario.popularity_states).long().expand(-1, scenario.cells)
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
    noise = split_noise(scenario, slot_noise)
    if not scenario.everyone_present:
        low, high = scenario.active_users or (scenario.users, scenario.users)
        there = (low + (count * (high - low + 1)).long()).clamp_max(high) if counted else low
        state["present"] = (torch.arange(scenario.users, device=position.device) < there).expand(envs, -1)
    if scenario.shadowing_db:
        state["shadowing"] = noise.shadowing
    return state | new_slot(scenario, state, noise)


def advance(scenario: Scenario, state: State, uniform: Tensor) -> State:
    """The worlds one slot later: users move, come, go and change cells, popularity may change, new requests come.

    Args:
        scenario: the world's constants.
        state: the worlds now.
        uniform: what `draw_noise` drew for the next slot.
    """
    noise = split_noise(scenario, uniform)
    slot = state["slot"] + 1
    chains = state["popularity"][:, : scenario.chains]
    jump = inverse_cdf(scenario.transition_cdf[chains], noise.popularity.unsqueeze(-1)).squeeze(-1)
    changes = (slot % scenario.popularity_change_every == 0).unsqueeze(-1)
    popularity = torch.where(changes, jump, chains).expand(-1, scenario.cells)
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
    if "present" in state:
        following["present"] = state["present"]
    if _turnover(scenario):
        starts = (slot % scenario.slots_per_frame == 0).unsqueeze(-1)
        chance = noise.turnover.squeeze(1)
        there = torch.where(state["present"], chance >= scenario.departure_rate, chance < scenario.arrival_rate)
        following["present"] = torch.where(starts, there, state["present"])
    if scenario.shadowing_db:
        a = scenario.shadowing_memory
        following["shadowing"] = a * state["shadowing"] + (1 - a * a) ** 0.5 * noise.shadowing
    if "serving" in state:
        following["serving"] = state["serving"]
    return following | new_slot(scenario, following, noise)


def new_slot(scenario: Scenario, state: State, noise: Noise) -> State:
    """One slot's demand and links as each cell sees them.

    Args:
        scenario: the world's constants.
        state: of this slot `popularity`, `position` and, where it has them, `present` and `shadowing`; `serving` of
            the slot before, none where an episode starts.
        noise: of this slot.

    Returns:
        [N, B, U] each: `request`, `input_bits`, `output_bits`, `gain` (of every link) and `attached` (whom the cell
        serves). With several cells also `serving` [N, U], `handover` (users taken over in this slot),
        `downlink_interference`, W, and `uplink_interference`, W [N, B].
    """
    position, present = state["position"], state.get("present")
    shape = (len(position), scenario.cells, scenario.users)
    distance = torch.linalg.vector_norm(position.unsqueeze(1) - scenario.sites.unsqueeze(1), dim=-1)
    long_term = path_gain(scenario, distance)
    if scenario.shadowing_db:
        long_term = long_term * 10 ** (scenario.shadowing_db / 10 * state["shadowing"])
    gain = long_term * rician_power(scenario.rician_factor, noise.fading)
    out = {"gain": gain}
    if scenario.cells == 1:
        everyone = torch.ones(shape, dtype=torch.bool, device=position.device)
        out["attached"] = everyone if present is None else present.unsqueeze(1)
    else:
        serving, taken_over = attach(long_term, state.get("serving"), scenario.hysteresis_db)
        if present is not None:
            serving, taken_over = torch.where(present, serving, -1), taken_over & present
        attached = members(serving, scenario.cells)
        uplink, downlink = interference(scenario, gain, attached)
        out |= {"serving": serving, "attached": attached, "handover": taken_over.unsqueeze(1) & attached}
        out |= {"uplink_interference": uplink, "downlink_interference": downlink}
    ask, sizes = noise.demand[:, 0], noise.demand[:, 1:]
    demand = scenario.demand(state["popularity"])
    if scenario.chains == 1:
        request = inverse_cdf(scenario.request_cdf[demand[:, 0]], ask)
    else:  # who is absent asks for nothing: what stands there is seen by no cell
        own = demand.gather(1, out["serving"].clamp_min(0))
        request = inverse_cdf(scenario.request_cdf[own], ask.unsqueeze(-1)).squeeze(-1)
    least, spread = scenario.payload_ranges
    input_bits, output_bits = torch.addcmul(least, sizes, spread).unbind(1)
    per_user = {"request": request, "input_bits": input_bits, "output_bits": output_bits}
    return {key: value.unsqueeze(1).expand(shape) for key, value in per_user.items()} | out
