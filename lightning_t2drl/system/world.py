"""The state of the worlds and how it changes: pure tensor functions of noise that is drawn outside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_t2drl.system.cells import attach, interference, members
from lightning_t2drl.system.channels.base import Links
from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.demands.base import Recorded
from lightning_t2drl.system.noise import normal_pairs
from lightning_t2drl.system.scenario import Scenario

# `slot` int64 [N] (of the episode), `popularity` int64 [N, B], `position` [N, U, 2] and what else the mobility
# remembers, what `new_slot` returns and, where they are not trivial, `present` bool [N, U], `serving` int64 [N, U] (the
# station, -1 for who is absent), `shadowing` [N, B, U] (in standard deviations), `radio` [N, B, U, *] (what the channel
# remembers) and `origin` int64 [N] (the slot of recorded time at which the episode started).
State = dict[str, Tensor]


class Noise(NamedTuple):
    """The random numbers of one slot."""

    popularity: Tensor  # uniform [N, chains]
    demand: Tensor  # uniform [N, 3, U]: request, input, output
    mobility: Tensor  # normal [N, U, 2]
    fading: Tensor  # normal [N, B, U, 2]
    shadowing: Tensor  # normal [N, B, U], or [N, 0, U] without shadowing
    turnover: Tensor  # uniform [N, 1, U]: who comes and goes; [N, 0, U] where nobody does
    activity: Tensor  # uniform [N, 1, U]: who asks; [N, 0, U] where everybody does
    walk: Tensor  # uniform [N, U, W]: what else the mobility needs
    radio: Tensor  # normal [N, B, U, C]: what the channel needs


def draw_noise(scenario: Scenario, envs: int, generator: torch.Generator) -> Tensor:
    """The random numbers of one slot, uniform [N, columns] in one draw, one row per world.

    From the same generator state, the first worlds get the same numbers however many there are (on the CPU).
    """
    return torch.rand(envs, _columns(scenario), generator=generator, device=generator.device)


def _pairs(scenario: Scenario) -> int:
    """Pairs of normal numbers per user and slot: a step, the fading of each link, and shadowing."""
    return 1 + scenario.cells * (1 + bool(scenario.shadowing_db) + scenario.channel.pairs)


def _turnover(scenario: Scenario) -> bool:
    return not scenario.everyone_present and bool(scenario.arrival_rate or scenario.departure_rate)


def _columns(scenario: Scenario) -> int:
    per_user = 3 + 2 * _pairs(scenario) + _turnover(scenario) + (scenario.activity < 1) + scenario.mobility.uniforms
    return scenario.chains + per_user * scenario.users


def split_noise(scenario: Scenario, uniform: Tensor) -> Noise:
    """The numbers of `draw_noise`, by purpose."""
    popularity, rest = uniform.tensor_split((scenario.chains,), -1)
    pairs, cells = _pairs(scenario), scenario.cells
    ends = 3 + 2 * pairs + _turnover(scenario)
    demand, first, second, turnover, activity, walk = rest.unflatten(-1, (-1, scenario.users)).tensor_split(
        (3, 3 + pairs, 3 + 2 * pairs, ends, ends + (scenario.activity < 1)), 1
    )
    normal = normal_pairs(first, second)
    last = pairs - cells * scenario.channel.pairs
    shadowing, radio = normal[:, 1 + cells : last, :, 0], normal[:, last:]
    radio = radio.unflatten(1, (cells, -1)).transpose(2, 3).flatten(-2) if scenario.channel.pairs else radio
    walk = walk.transpose(1, 2)
    return Noise(popularity, demand, normal[:, 0], normal[:, 1 : 1 + cells], shadowing, turnover, activity, walk, radio)


def initial_state(scenario: Scenario, envs: int, generator: torch.Generator, held_out: bool = False) -> State:
    """Worlds at the first slot of an episode.

    The popularity state starts in the chain's uniform distribution; users stand where their mobility lets them start.
    With `active_users` the first users are there, as many as a uniform whole number from that range says. What is
    recorded is played from a random slot on, from which it lasts for the episode; `held_out`: of what is held out for
    evaluation.
    """
    counted = scenario.active_users is not None
    recorded = scenario.recorded_slots is not None
    sizes = (scenario.chains, 5 * scenario.users, _columns(scenario), int(counted), int(recorded))
    uniform = torch.rand(envs, sum(sizes), generator=generator, device=generator.device)
    start, rest, slot_noise, count, origin = uniform.split(sizes, -1)
    popularity = (start * scenario.popularity_states).long().expand(-1, scenario.cells)
    slot = torch.zeros(envs, dtype=torch.int64, device=generator.device)
    state = {"slot": slot, "popularity": popularity}
    if recorded:
        starts = scenario.held_out_starts if held_out else scenario.training_starts
        state["origin"] = starts[(origin.squeeze(-1) * len(starts)).long().clamp_max(len(starts) - 1)]
    rest = rest.unflatten(-1, (5, scenario.users)).transpose(1, 2)
    state |= scenario.mobility.start(_time(state), rest)
    noise = split_noise(scenario, slot_noise)
    if not scenario.everyone_present:
        low, high = scenario.active_users or (scenario.users, scenario.users)
        there = (low + (count * (high - low + 1)).long()).clamp_max(high) if counted else low
        state["present"] = (torch.arange(scenario.users, device=slot.device) < there).expand(envs, -1)
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
    following = {"slot": slot, "popularity": popularity}
    for kept in ("origin", "present", "radio", "serving"):
        if kept in state:
            following[kept] = state[kept]
    following |= scenario.mobility.move(state, _time(following), noise.mobility, noise.walk)
    if _turnover(scenario):
        starts = (slot % scenario.slots_per_frame == 0).unsqueeze(-1)
        chance = noise.turnover.squeeze(1)
        there = torch.where(state["present"], chance >= scenario.departure_rate, chance < scenario.arrival_rate)
        following["present"] = torch.where(starts, there, state["present"])
    if scenario.shadowing_db:
        a = scenario.shadowing_memory
        following["shadowing"] = a * state["shadowing"] + (1 - a * a) ** 0.5 * noise.shadowing
    moved = None
    if scenario.channel.pairs:
        moved = torch.linalg.vector_norm(following["position"] - state["position"], dim=-1).unsqueeze(1)
    return following | new_slot(scenario, following, noise, moved)


def _time(state: State) -> Tensor:
    """The slot of recorded time, or of the episode where nothing is recorded, int64 [N]."""
    return state["origin"] + state["slot"] if "origin" in state else state["slot"]


def of_request(value: Tensor, request: Tensor) -> Tensor:
    """What requests [N, U] have of two quantities per model [2, M]: [N, 2, U]; [2, 1] is the same for all."""
    return value if value.shape[-1] == 1 else value[:, request].transpose(0, 1)


def new_slot(scenario: Scenario, state: State, noise: Noise, moved: Tensor | None = None) -> State:
    """One slot's demand and links as each cell sees them.

    Args:
        scenario: the world's constants.
        state: of this slot `slot`, `popularity`, `position` and, where it has them, `origin`, `present` and
            `shadowing`; `serving` and `radio` of the slot before, none where an episode starts.
        noise: of this slot.
        moved: how far users went since the slot before, m [N, 1, U]; None: they stand.

    Returns:
        [N, B, U] each: `request`, `input_bits`, `output_bits`, `gain` (of every link) and `attached` (whom the cell
        serves). With a channel that remembers, `radio`. With several cells also `serving` [N, U], `handover` (users
        taken over in this slot),
        `downlink_interference`, W, and `uplink_interference`, W [N, B].
    """
    position, present = state["position"], state.get("present")
    shape = (len(position), scenario.cells, scenario.users)
    distance = torch.linalg.vector_norm(position.unsqueeze(1) - scenario.sites.unsqueeze(1), dim=-1)
    links = Links(distance, _time(state), moved, noise.radio, state.get("radio"))
    long_term, memory = scenario.channel.long_term(links)
    if scenario.shadowing_db:
        long_term = long_term * 10 ** (scenario.shadowing_db / 10 * state["shadowing"])
    gain = long_term * scenario.fading.power(noise.fading)
    out = {"gain": gain} if memory is None else {"gain": gain, "radio": memory}
    recorded = scenario.requests.recorded(_time(state))
    asks = _asking(scenario, present, recorded, noise)
    if scenario.cells == 1:
        everyone = torch.ones(shape, dtype=torch.bool, device=position.device)
        out["attached"] = everyone if asks is None else asks.unsqueeze(1)
    else:
        serving, taken_over = attach(long_term, state.get("serving"), scenario.hysteresis_db)
        if recorded is not None and recorded.cell is not None:  # whatever the radio says
            serving, taken_over = torch.where(recorded.asks, recorded.cell, serving), torch.zeros_like(taken_over)
        if present is not None:
            serving, taken_over = torch.where(present, serving, -1), taken_over & present
        attached = members(serving, scenario.cells)
        if asks is not None and asks is not present:
            attached = attached & asks.unsqueeze(1)
        uplink, downlink = interference(scenario, gain, attached)
        out |= {"serving": serving, "attached": attached, "handover": taken_over.unsqueeze(1) & attached}
        out |= {"uplink_interference": uplink, "downlink_interference": downlink}
    ask, sizes = noise.demand[:, 0], noise.demand[:, 1:]
    if recorded is None:
        request = scenario.requests.request(state["popularity"], out.get("serving"), _time(state), ask)
    else:
        request = recorded.request
    least, spread = (of_request(value, request) for value in scenario.payload_ranges)
    input_bits, output_bits = torch.addcmul(least, sizes, spread).unbind(1)
    if recorded is not None:
        input_bits = input_bits if recorded.input_bits is None else recorded.input_bits
        output_bits = output_bits if recorded.output_bits is None else recorded.output_bits
    per_user = {"request": request, "input_bits": input_bits, "output_bits": output_bits}
    return {key: value.unsqueeze(1).expand(shape) for key, value in per_user.items()} | out


def _asking(scenario: Scenario, present: Tensor | None, recorded: Recorded | None, noise: Noise) -> Tensor | None:
    """Who is there and asks for something, bool [N, U]; None: everybody."""
    asks = present
    for some in (
        None if recorded is None else recorded.asks,
        noise.activity.squeeze(1) < scenario.activity if scenario.activity < 1 else None,
    ):
        if some is not None:
            asks = some if asks is None else asks & some
    return asks
