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
    demand: Tensor  # uniform [3, N, U]: request, input, output
    mobility: Tensor  # normal [N, U, 2]
    fading: Tensor  # normal [N, B, U, 2]
    shadowing: Tensor  # normal [N, B, U]; empty without shadowing
    turnover: Tensor  # uniform [1, N, U]: who comes and goes; empty where nobody does
    activity: Tensor  # uniform [1, N, U]: who asks; empty where everybody does
    walk: Tensor  # uniform [N, U, W]: what else the mobility needs; empty if nothing
    radio: Tensor  # normal [N, B, U, C]: what the channel needs; empty if nothing


def draw_noise(scenario: Scenario, envs: int, generator: torch.Generator) -> Tensor:
    """The random numbers of one slot, uniform [N, columns] in one draw, one row per world.

    From the same generator state, the first worlds get the same numbers however many there are (on the CPU).
    """
    return torch.rand(envs, _columns(scenario), generator=generator, device=generator.device)


def _columns(scenario: Scenario) -> int:
    return scenario.chains + sum(scenario.noise_rows) * scenario.users


def split_noise(scenario: Scenario, uniform: Tensor) -> Noise:
    """The numbers of `draw_noise`, by purpose. Each row of users becomes a plane [N, U] in one piece of memory."""
    popularity, rest = uniform.split((scenario.chains, uniform.shape[-1] - scenario.chains), -1)
    planes = rest.unflatten(-1, (-1, scenario.users)).transpose(0, 1).contiguous()
    demand, first, second, turnover, activity, walk = planes.split(scenario.noise_rows)
    normal = normal_pairs(first, second)
    step, fading, shadowing, radio = normal.split((1, *scenario.link_pairs))
    by_world = radio.unflatten(0, (scenario.cells, -1)).permute(2, 0, 3, 1, 4).flatten(-2) if len(radio) else radio
    return Noise(
        popularity=popularity,
        demand=demand,
        mobility=step[0],
        fading=fading.transpose(0, 1),
        shadowing=shadowing[..., 0].transpose(0, 1) if len(shadowing) else shadowing,
        turnover=turnover,
        activity=activity,
        walk=walk.movedim(0, -1) if len(walk) else walk,
        radio=by_world,
    )


def initial_state(scenario: Scenario, envs: int, generator: torch.Generator, held_out: bool = False) -> State:
    """Worlds at the first slot of an episode.

    The popularity state starts in the chain's uniform distribution; users stand where their mobility lets them start.
    With `active_users` the first users are there, as many as a whole number from that range says: each as likely, or
    with `active_users_spread` log each doubling, P(n) ~ log(1 + 1/n). What is recorded is played from a random slot on,
    from which it lasts for the episode; `held_out`: of what is held out for evaluation.
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
        there: Tensor | int = low
        if counted and scenario.active_users_spread == "log":
            there = (low * ((high + 1) / low) ** count).long().clamp(low, high)
        elif counted:
            there = (low + (count * (high - low + 1)).long()).clamp_max(high)
        state["present"] = (torch.arange(scenario.users, device=slot.device) < there).expand(envs, -1)
    if scenario.shadowing_db:
        state["shadowing"] = noise.shadowing
    return state | new_slot(scenario, state, noise)


def advance(scenario: Scenario, state: State, uniform: Tensor, changes: bool = True) -> State:
    """The worlds one slot later: users move, come, go and change cells, popularity may change, new requests come.

    Args:
        scenario: the world's constants.
        state: the worlds now.
        uniform: what `draw_noise` drew for the next slot.
        changes: whether popularity may change in the next slot of any world; False saves asking all of them.
    """
    noise = split_noise(scenario, uniform)
    slot = state["slot"] + 1
    following = {
        "slot": slot,
        "popularity": _popularity(scenario, state, slot, noise) if changes else state["popularity"],
    }
    for kept in ("origin", "present", "radio", "serving"):
        if kept in state:
            following[kept] = state[kept]
    following |= scenario.mobility.move(state, _time(following), noise.mobility, noise.walk)
    if scenario.turnover:
        starts = (slot % scenario.slots_per_frame == 0).unsqueeze(-1)
        chance = noise.turnover[0]
        there = torch.where(state["present"], chance >= scenario.departure_rate, chance < scenario.arrival_rate)
        following["present"] = torch.where(starts, there, state["present"])
    if scenario.shadowing_db:
        a = scenario.shadowing_memory
        following["shadowing"] = a * state["shadowing"] + (1 - a * a) ** 0.5 * noise.shadowing
    moved = None
    if scenario.channel.pairs:
        moved = torch.hypot(*(following["position"] - state["position"]).unbind(-1)).unsqueeze(1)
    return following | new_slot(scenario, following, noise, moved)


def _popularity(scenario: Scenario, state: State, slot: Tensor, noise: Noise) -> Tensor:
    """The chains' states in this slot, int64 [N, B]."""
    chains = state["popularity"][:, : scenario.chains]
    jump = inverse_cdf(scenario.transition_cdf[chains], noise.popularity.unsqueeze(-1)).squeeze(-1)
    jumps = (slot % scenario.popularity_change_every == 0).unsqueeze(-1)
    return torch.where(jumps, jump, chains).expand(-1, scenario.cells)


def _time(state: State) -> Tensor:
    """The slot of recorded time, or of the episode where nothing is recorded, int64 [N]."""
    return state["origin"] + state["slot"] if "origin" in state else state["slot"]


def of_request(value: Tensor, request: Tensor) -> Tensor:
    """What requests [N, U] have of two quantities per model [2, M]: [2, N, U]; [2, 1, 1] is the same for all."""
    return value if value.ndim == 3 else value[:, request]


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
    distance = torch.hypot(*(position.unsqueeze(1) - scenario.sites.unsqueeze(1)).unbind(-1))
    links = Links(distance, _time(state), moved, noise.radio, state.get("radio"))
    long_term, memory = scenario.channel.long_term(links)
    if scenario.shadowing_db:
        long_term = long_term * 10 ** (scenario.shadowing_db / 10 * state["shadowing"])
    gain = long_term * scenario.fading.power(noise.fading)
    out = {"gain": gain} if memory is None else {"gain": gain, "radio": memory}
    recorded = scenario.requests.recorded(_time(state))
    asks = _asking(scenario, present, recorded, noise)
    if scenario.cells == 1:
        out["attached"] = scenario.everyone.expand(shape) if asks is None else asks.unsqueeze(1)
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
    ask, sizes = noise.demand.split((1, 2))
    if recorded is None:
        request = scenario.requests.request(state["popularity"], out.get("serving"), _time(state), ask[0])
    else:
        request = recorded.request
    least, spread = (of_request(value, request) for value in scenario.payload_ranges)
    input_bits, output_bits = torch.addcmul(least, sizes, spread).unbind()
    if recorded is not None:
        input_bits = input_bits if recorded.input_bits is None else recorded.input_bits
        output_bits = output_bits if recorded.output_bits is None else recorded.output_bits
    per_user = {"request": request, "input_bits": input_bits, "output_bits": output_bits}
    per_user = {key: value.unsqueeze(1) for key, value in per_user.items()}
    return ({key: value.expand(shape) for key, value in per_user.items()} if scenario.cells > 1 else per_user) | out


def _asking(scenario: Scenario, present: Tensor | None, recorded: Recorded | None, noise: Noise) -> Tensor | None:
    """Who is there and asks for something, bool [N, U]; None: everybody."""
    asks = present
    for some in (
        None if recorded is None else recorded.asks,
        noise.activity[0] < scenario.activity if scenario.activity < 1 else None,
    ):
        if some is not None:
            asks = some if asks is None else asks & some
    return asks
