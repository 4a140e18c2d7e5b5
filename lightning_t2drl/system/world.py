"""The world's state and how it moves on: pure tensor functions, with all noise drawn outside."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system.channel import move, path_gain, rician_power, uniform_position
from lightning_t2drl.system.demand import inverse_cdf
from lightning_t2drl.system.scenario import Scenario


def draw_noise(scenario: Scenario, envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Everything random about one slot of `envs` worlds, in two draws.

    Returns:
        uniform [N, 1 + 3 U] (popularity; requests; input; output) and normal [N, U, 4] (mobility; fading).
    """
    device = generator.device
    uniform = torch.rand(envs, scenario.cells + 3 * scenario.users, generator=generator, device=device)
    return uniform, torch.randn(envs, scenario.users, 4, generator=generator, device=device)


def initial_state(scenario: Scenario, envs: int, generator: torch.Generator) -> TensorDict:
    """Worlds at the first slot of an episode.

    The popularity state starts in the chain's uniform distribution; users stand uniformly in the disc and walk
    with velocities from the stationary distribution of their mobility.

    Returns:
        TensorDict [N] with `slot` int64 [N] (slot of the episode), `popularity` int64 [N, B], `position`, `velocity`,
        `mean_velocity` [N, U, 2], and the slot's demand and channel (see `new_slot`).
    """
    device, users = generator.device, scenario.users
    start = torch.rand(envs, users, 3, generator=generator, device=device)
    heading = 2 * torch.pi * start[..., 2]
    mean_velocity = scenario.mean_speed * torch.stack((heading.cos(), heading.sin()), -1)
    wander = torch.randn(envs, users, 2, generator=generator, device=device)
    popularity = torch.randint(scenario.popularity_states, (envs, scenario.cells), generator=generator, device=device)
    uniform, normal = draw_noise(scenario, envs, generator)
    state = {
        "slot": torch.zeros(envs, dtype=torch.int64, device=device),
        "popularity": popularity,
        "position": uniform_position(scenario, start[..., :2]),
        "velocity": mean_velocity + scenario.speed_deviation * wander,
        "mean_velocity": mean_velocity,
    }
    state |= new_slot(scenario, popularity, state["position"], uniform, normal)
    return TensorDict(state, batch_size=[envs], device=device)


def advance(scenario: Scenario, state: TensorDict, noise: tuple[Tensor, Tensor]) -> TensorDict:
    """The worlds one slot later: users move, popularity may change, new requests come, fading is drawn anew."""
    uniform, normal = noise
    slot = state["slot"] + 1
    jump = inverse_cdf(scenario.popularity_transition[state["popularity"]], uniform[:, : scenario.cells, None]).squeeze(
        -1
    )
    changes = (slot % scenario.popularity_change_every == 0).unsqueeze(-1)
    popularity = torch.where(changes, jump, state["popularity"])
    position, velocity, mean_velocity = move(
        scenario, state["position"], state["velocity"], state["mean_velocity"], normal[..., :2]
    )
    following = {
        "slot": slot,
        "popularity": popularity,
        "position": position,
        "velocity": velocity,
        "mean_velocity": mean_velocity,
    }
    following |= new_slot(scenario, popularity, position, uniform, normal)
    return TensorDict(following, batch_size=state.batch_size, device=state.device)


def new_slot(
    scenario: Scenario, popularity: Tensor, position: Tensor, uniform: Tensor, normal: Tensor
) -> dict[str, Tensor]:
    """One slot's demand and channel as each cell sees them, [N, B, U] by name.

    Every user is attached to the one cell (B = 1); the cell dimension is there for all that follows.
    """
    users, shape = scenario.users, (len(position), scenario.cells, scenario.users)
    _, ask, size_in, size_out = uniform.split([scenario.cells, users, users, users], -1)
    # One cell: a user's requests follow that cell's popularity.
    request = inverse_cdf(scenario.request_probability[popularity[:, 0]], ask)
    low, high = scenario.input_bits
    input_bits = low + (high - low) * size_in
    low, high = scenario.output_bits
    output_bits = low + (high - low) * size_out
    distance = torch.linalg.vector_norm(position, dim=-1)
    gain = path_gain(scenario, distance) * rician_power(scenario.rician_factor, normal[..., 2:])
    per_cell = {"request": request, "input_bits": input_bits, "output_bits": output_bits, "gain": gain}
    out = {key: value.unsqueeze(1).expand(shape) for key, value in per_cell.items()}
    return out | {"attached": torch.ones(shape, dtype=torch.bool, device=position.device)}
