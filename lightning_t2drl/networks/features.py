"""Turns an observation in physical units into what networks read, normalised by constants of the scenario.

Times are shares of the user's own deadline and steps of what the budget buys, so that no unit of a service is seen.

Every layout gives the same named fields: `hit` and `attached` (bool [*, U]) and `full_share` ([*, U], the share of the
step budget that full quality takes), which turn an output into an allocation, and `features`, which
networks read. So a policy can act on a replayed state without the observation it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from lightning_t2drl.system import service
from lightning_t2drl.system.channel import access_time, path_gain
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits, nearby_misses

State = Mapping[str, Tensor]  # by field, see above
Observation = Mapping[str, Tensor]  # the cells' observation, see `EdgeAIGCEnv`


class Features(Protocol):
    """A layout of `features`. An actor and a critic must read the same one."""

    def __init__(self, scenario: Scenario) -> None: ...

    def __call__(self, scenario: Scenario, observation: Observation) -> dict[str, Tensor]:
        """The state's fields [*, ...] from the cells' observation [*]."""


def facts(scenario: Scenario, observation: Observation) -> dict[str, Tensor]:
    """`hit`, `attached` and `full_share` [*, U]; a user attached to another cell is not counted as a hit."""
    request, attached = observation["request"], observation["attached"]
    return {
        "hit": hits(observation["cache"], request) & attached,
        "attached": attached,
        "full_share": scenario.full_steps[request] / service.of_model(scenario.budget_steps, request),
    }


def floor_share(scenario: Scenario, observation: Observation) -> Tensor:
    """The share of the step budget that A1 steps take, which bring no quality; [*, U]."""
    request = observation["request"]
    return scenario.floor_steps[request] / service.of_model(scenario.budget_steps, request)


def efficient_share(scenario: Scenario, observation: Observation) -> Tensor:
    """The share of the step budget at which steps bring the most quality each; [*, U]."""
    request = observation["request"]
    return scenario.efficient_steps[request] / service.of_model(scenario.budget_steps, request)


def delay_cost(scenario: Scenario, observation: Observation) -> Tensor:
    """What delay costs per deadline, 1 - alpha, and what being late costs beside it, chi; [*, U, 2]."""
    request = observation["request"]
    worth = torch.empty(*request.shape, 2, device=request.device)
    worth[..., 0] = 1 - service.of_model(scenario.alpha, request)
    worth[..., 1] = service.of_model(scenario.deadline_penalty, request)
    return worth


def _centred(value: Tensor, interval: tuple[float, float] | Tensor, request: Tensor) -> Tensor:
    """A uniform variable scaled to [-1, 1] (0 where the range is a point) within the range of what is requested."""
    if isinstance(interval, Tensor):
        least, most = interval[request].unbind(-1)
        return torch.where(most > least, (value - least) * (2 / (most - least).clamp_min(1e-30)) - 1, 0.0)
    low, high = interval
    return (value - low) * (2 / (high - low)) - 1 if high > low else torch.zeros_like(value)


def _log_gain(scenario: Scenario, gain: Tensor) -> Tensor:
    """log10 of the gain, centred on that at two thirds of the radius (a disc's mean distance), in units of 20 dB."""
    typical = path_gain(scenario, torch.tensor(2 / 3 * scenario.radius)).log10().item()
    return (gain.clamp_min(1e-30).log10() - typical) / 2


def _backhaul(scenario: Scenario, observation: Observation, hit: Tensor) -> Tensor:
    """What each user's miss waits for the backhaul or the edge link, as a share of the deadline, [*, U]."""
    request, attached = observation["request"], observation["attached"]
    payload = observation["input_bits"] + observation["output_bits"]
    deadline = service.of_model(scenario.deadline, request)

    def shared(rate: float, misses: Tensor) -> Tensor:
        return payload / (rate * deadline) * misses * misses.sum(-1, keepdim=True)

    near = nearby_misses(scenario, hit, request, attached, observation.get("nearby", None))
    miss = attached & ~hit
    if near is None or scenario.edge_link_rate is None:
        return shared(scenario.backhaul_rate, miss)
    return shared(scenario.backhaul_rate, miss & ~near) + shared(scenario.edge_link_rate, near)


class FlatFeatures:
    """The published state: channel gains, requests, caching decision and payload sizes, as one vector [*, S].

    Where users come, go or change cells, the rows of users of other cells are 0, and each row also holds whether the
    user is attached. With several cells the gain stands over noise and interference, down and up, and each row
    holds whether the user was just taken over.
    """

    any_users = False

    def __init__(self, scenario: Scenario) -> None:
        own = 3 + scenario.models + (0 if scenario.one_crowd else 1) + (2 if scenario.cells > 1 else 0)
        self.width = scenario.users * own + scenario.models

    def __call__(self, scenario: Scenario, observation: Observation) -> dict[str, Tensor]:
        if not scenario.one_crowd:
            return facts(scenario, observation) | {"features": self._of_members(scenario, observation)}
        request = torch.nn.functional.one_hot(observation["request"], scenario.models)
        parts = [
            _log_gain(scenario, observation["gain"]),
            *self._payloads(scenario, observation),
            request.flatten(-2),
            observation["cache"],
        ]
        return facts(scenario, observation) | {"features": torch.cat([part.float() for part in parts], -1)}

    @staticmethod
    def _payloads(scenario: Scenario, observation: Observation) -> list[Tensor]:
        return [
            _centred(observation[key], getattr(scenario, key), observation["request"])
            for key in ("input_bits", "output_bits")
        ]

    def _of_members(self, scenario: Scenario, observation: Observation) -> Tensor:
        attached, gain = observation["attached"], observation["gain"]
        rows = self._payloads(scenario, observation)
        if scenario.cells > 1:
            noise = scenario.noise_density * scenario.cell_bandwidth
            down = gain / (1 + observation["downlink_interference"] / noise)
            up = gain / (1 + observation["uplink_interference"] / noise).unsqueeze(-1)
            rows += [_log_gain(scenario, down), _log_gain(scenario, up), observation["handover"]]
        else:
            rows.append(_log_gain(scenario, gain))
        request = torch.nn.functional.one_hot(observation["request"], scenario.models)
        table = torch.cat((torch.stack([row.float() for row in rows], -1), request.float()), -1)
        table = torch.cat((table, torch.ones_like(table[..., :1])), -1) * attached.unsqueeze(-1)
        return torch.cat((table.flatten(-2), observation["cache"].float()), -1)


class UserFeatures:
    """One row per user, [*, U, F], the same for any number of users: networks treat users as a set.

    Beside the published quantities each row says what they mean for the user: the seconds the link would take
    with all the bandwidth (log scale), the time left before the deadline at full quality, and the cell's load.
    """

    any_users = True
    LINK, SLACK, GENERATION = 2, 4, 10  # columns that `log_link` and `time_left` read
    PER_USER = 11  # F

    def __init__(self, scenario: Scenario) -> None:
        """Nothing depends on the scenario's sizes."""

    def __call__(self, scenario: Scenario, observation: Observation) -> dict[str, Tensor]:
        known = facts(scenario, observation)
        hit, attached = known["hit"], known["attached"]
        link = access_time(
            scenario,
            *(observation[key] for key in ("gain", "input_bits", "output_bits")),
            *(observation.get(key, None) for key in ("uplink_interference", "downlink_interference")),
        )
        curve = service.profile(scenario, observation["request"])
        link = link / curve.deadline
        backhaul = _backhaul(scenario, observation, hit)
        full = curve.full_steps
        slack = 1 - service.generation_delay(curve, full) / curve.deadline - backhaul
        if (handover := observation.get("handover", None)) is not None:
            slack = slack - scenario.handover_delay / curve.deadline * handover
        # With the square-root law b_u ~ sqrt(a_u), user u's access delay is sqrt(a_u) times this sum.
        load = (link.sqrt() * attached).sum(-1, keepdim=True).clamp_min(1e-9).log()
        cost = full * service.of_model(scenario.step_cost, observation["request"])
        demand = (cost * hit).sum(-1, keepdim=True) / scenario.step_budget
        columns = [
            hit,
            attached,
            0.5 * (link.clamp_min(1e-9).log() + 4),
            0.5 * (link.clamp_min(1e-9).log() / 2 + load).expand_as(link),
            2 * slack,
            backhaul,
            demand.expand_as(link),
            (demand.clamp_min(1 / 64).log() / math.log(2)).expand_as(link),
            cost / scenario.step_budget * 5,
            curve.floor_steps / full,
            curve.seconds_per_step * full / curve.deadline,
        ]
        return known | {"features": torch.stack([column.float() for column in columns], -1)}

    @classmethod
    def log_link(cls, features: Tensor) -> Tensor:
        """log(a_u / tau_u) [*, U] back from `features` [*, U, F]."""
        return 2 * features[..., cls.LINK] - 4

    @classmethod
    def time_left(cls, features: Tensor, relative: Tensor) -> Tensor:
        """What backhaul and generation leave of the deadline, as a share of it, [*, U].

        Args:
            features: [*, U, F].
            relative: steps over those of full quality, [*, U].
        """
        return features[..., cls.SLACK] / 2 + features[..., cls.GENERATION] * (1 - relative)
