"""A learned allocator's decision as a function of what an operator measures, for export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_t2drl.networks.features import State
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.service import steps_of
from lightning_t2drl.system.serving import serve, situation

LEAST_GAIN = 1e-30  # weaker links are treated as this one, so that float32 does not overflow
OBSERVED = ("request", "input_bits", "output_bits", "gain", "cache", "attached")
OF_SEVERAL = ("uplink_interference", "downlink_interference", "handover")


def names_of(scenario: Scenario) -> tuple[str, ...]:
    """What is observed of a slot, in the order of a graph's inputs: `OBSERVED`, and more with several cells."""
    several = OF_SEVERAL if scenario.cells > 1 else ()
    return (*OBSERVED, *several, *(("nearby",) if scenario.cooperates else ()))


def observed(scenario: Scenario, users: int) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Example inputs of a slot, and which of their axes stay open."""
    batch = 3  # 1 would be traced as a constant
    _ = (
        scenario.service_table,
        scenario.curve_pieces,
        scenario.budget_steps,
    )  # kept once made: what a tracer made in its place would be of no use to the next
    inputs = {
        "request": torch.zeros(batch, users, dtype=torch.int64),
        **{name: torch.ones(batch, users) for name in ("input_bits", "output_bits", "gain")},
        "cache": torch.ones(batch, scenario.models, dtype=torch.bool),
        "attached": torch.ones(batch, users, dtype=torch.bool),
    }
    several = {
        "uplink_interference": torch.zeros(batch),
        "downlink_interference": torch.zeros(batch, users),
        "handover": torch.zeros(batch, users, dtype=torch.bool),
        "nearby": torch.zeros(batch, scenario.models, dtype=torch.bool),
    }
    inputs |= {name: value for name, value in several.items() if name in names_of(scenario)}
    per_cell = {name: {0: "batch"} for name in ("cache", "uplink_interference", "nearby") if name in inputs}
    return inputs, {name: {0: "batch", 1: "users"} for name in inputs} | per_cell


class AllocatorGraph(nn.Module):
    """One slot's decision, from what an operator measures to feasible shares.

    Args:
        allocator: owner of all parameters and of `fields` and `scenario`.
        shares: feasible shares [N, U, 2] from a state and noise [I, N, U, 2].
        chain: whether there is noise.
    """

    def __init__(self, allocator: Any, shares: Callable[[State, Tensor], Tensor], chain: bool) -> None:
        super().__init__()
        self.allocator, self.shares, self.chain = allocator, shares, chain

    def forward(self, *inputs: Tensor) -> Tensor:
        """Shares [N, U, 2] from what `names_of` lists and, for a diffusion chain, noise [I, N, U, 2]."""
        *values, noise = inputs if self.chain else (*inputs, torch.empty(0))
        return self.shares(state_of(self.allocator, values), noise)


class CriticGraph(nn.Module):
    """The critics' value of shares, by which the best of several samples is found.

    Args:
        allocator: as for `AllocatorGraph`.
        value: the critics' values [N, 1 or U] of a state and shares.
    """

    def __init__(self, allocator: Any, value: Callable[[State, Tensor], Tensor]) -> None:
        super().__init__()
        self.allocator, self.value = allocator, value

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values [N] from what `names_of` lists and shares [N, U, 2]."""
        *values, shares = inputs
        return self.value(state_of(self.allocator, values), shares).mean(-1)


class OutcomeGraph(nn.Module):
    """What comes of shares, from what an operator measures.

    Args:
        scenario: the world's constants.
        names: of the inputs before the shares.
    """

    COLUMNS = ("hit", "nearby", "delay", "quality", "violated", "utility")

    def __init__(self, scenario: Scenario, names: tuple[str, ...]) -> None:
        super().__init__()
        self.scenario, self.names = scenario, names
        _ = scenario.service_table, scenario.curve_pieces, scenario.budget_steps  # kept once made, not traced

    def forward(self, *inputs: Tensor) -> Tensor:
        """[N, U] by column, from what `names` lists and shares [N, U, 2]."""
        *values, shares = inputs
        given = situation(dict(zip(self.names, values, strict=True)))
        steps = steps_of(self.scenario, given["request"], shares[..., 1])
        served = serve(self.scenario, **given, bandwidth=shares[..., 0], steps=steps)
        nothing = torch.zeros_like(shares[..., 0])
        return torch.stack([served.get(name, nothing).float() for name in self.COLUMNS], -1)


def state_of(allocator: Any, values: Iterable[Tensor]) -> State:
    """The allocator's state from what was observed."""
    observation = dict(zip(names_of(allocator.scenario), values, strict=True))
    observation["gain"] = observation["gain"].clamp_min(LEAST_GAIN)
    return allocator.fields(observation)
