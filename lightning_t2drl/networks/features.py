"""From an observation in physical units to what networks see: fixed, scenario-based normalisation.

Both layouts start with `hit`, `attached` and `full_share` [U] each: what amending an action takes, so that a replayed
state can be acted on without the observation it came from.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.channel import access_time, path_gain
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits


def flags(observation: TensorDict) -> tuple[Tensor, Tensor]:
    """`hit` and `attached` as bool [*, U]; a user of another cell is no hit."""
    attached = observation["attached"]
    return hits(observation["cache"], observation["request"]) & attached, attached


def _centred(value: Tensor, interval: tuple[float, float]) -> Tensor:
    """A uniform variable scaled to [-1, 1] (0 where the range is a point)."""
    low, high = interval
    return (value - low) * (2 / (high - low)) - 1 if high > low else torch.zeros_like(value)


def _log_gain(scenario: Scenario, gain: Tensor) -> Tensor:
    """log10 of the gain, centred on that at two thirds of the radius (a disc's mean distance), in units of 20 dB."""
    typical = path_gain(scenario, torch.tensor(2 / 3 * scenario.radius)).log10().item()
    return (gain.clamp_min(1e-30).log10() - typical) / 2


class FlatFeatures:
    """The published state: channel gains, requests, caching decision and payload sizes, as one vector."""

    def __init__(self, scenario: Scenario) -> None:
        self.users, self.models = scenario.users, scenario.models
        self.inputs = self.users * (3 + self.models) + self.models
        self.width = 3 * self.users + self.inputs

    def __call__(self, scenario: Scenario, observation: TensorDict) -> Tensor:
        """[*, S] from the cells' observation [*]."""
        hit, attached = flags(observation)
        request = torch.nn.functional.one_hot(observation["request"], self.models)
        parts = [
            *amending_columns(scenario, observation["request"], hit, attached),
            _log_gain(scenario, observation["gain"]),
            _centred(observation["input_bits"], scenario.input_bits),
            _centred(observation["output_bits"], scenario.output_bits),
            request.flatten(-2),
            observation["cache"],
        ]
        return torch.cat([part.float() for part in parts], -1)


class UserFeatures:
    """One row per user, the same for any number of users: users are a set and the networks treat them as one.

    Beside the published quantities each row says what they mean for the user: the seconds the link would take
    with all the bandwidth (log scale), the time that is left of the deadline at full quality, and the cell's load.
    """

    LINK = 2  # row of the table that holds the log of link time over deadline, see `log_link`
    PER_USER = 11

    def __init__(self, scenario: Scenario) -> None:
        self.users = scenario.users
        self.width = (3 + self.PER_USER) * self.users

    def __call__(self, scenario: Scenario, observation: TensorDict) -> Tensor:
        """[*, S] from the cells' observation [*]."""
        request = observation["request"]
        hit, attached = flags(observation)
        link = access_time(scenario, observation["gain"], observation["input_bits"], observation["output_bits"])
        link = link / scenario.deadline
        miss = attached & ~hit
        payload = (observation["input_bits"] + observation["output_bits"]) / (
            scenario.backhaul_rate * scenario.deadline
        )
        backhaul = payload * miss * miss.sum(-1, keepdim=True)
        curve = service.profile(scenario, request)
        full = curve.full_steps
        slack = 1 - service.generation_delay(curve, full) / scenario.deadline - backhaul
        # With the square-root law b_u ~ sqrt(a_u), user u's access delay is sqrt(a_u) times this sum.
        load = (link.sqrt() * attached).sum(-1, keepdim=True).clamp_min(1e-9).log()
        demand = (full * hit).sum(-1, keepdim=True) / scenario.step_budget
        floor_ratio = curve.floor_steps / full
        rows = [
            hit,
            attached,
            0.5 * (link.clamp_min(1e-9).log() + 4),
            0.5 * (link.clamp_min(1e-9).log() / 2 + load).expand_as(link),
            2 * slack,
            backhaul,
            demand.expand_as(link),
            (demand.clamp_min(1 / 64).log() / math.log(2)).expand_as(link),
            full / scenario.step_budget * 5,
            floor_ratio,
            curve.seconds_per_step * full / scenario.deadline,
        ]
        table = torch.stack([row.float() for row in rows], -1)
        columns = [column.float() for column in amending_columns(scenario, request, hit, attached)]
        return torch.cat((*columns, table.flatten(-2)), -1)

    @classmethod
    def log_link(cls, table: Tensor) -> Tensor:
        """log(a_u / deadline) [*, U] back from the features [*, U, F]."""
        return 2 * table[..., cls.LINK] - 4


def amending_columns(scenario: Scenario, request: Tensor, hit: Tensor, attached: Tensor) -> list[Tensor]:
    """The leading columns of a state: `hit`, `attached`, and `full_share`, the share of L that full quality takes."""
    return [hit, attached, scenario.full_steps[request] / scenario.step_budget]


def amending_facts(state: Tensor, users: int) -> tuple[Tensor, Tensor, Tensor]:
    """`hit`, `attached` (bool [*, U]) and `full_share` [*, U] back from states [*, S]."""
    hit, attached, full_share, _ = state.tensor_split((users, 2 * users, 3 * users), -1)
    return hit > 0.5, attached > 0.5, full_share


def network_inputs(state: Tensor, users: int) -> Tensor:
    """What networks see of states [*, S]: [*, rest]."""
    return state[..., 3 * users :]
