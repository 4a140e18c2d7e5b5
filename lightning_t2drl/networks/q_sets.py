"""A Q-network to which models are a set: what it learns of one model it knows of any like it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_t2drl.networks.mlp import Tail
from lightning_t2drl.networks.q import QConfig
from lightning_t2drl.system.scenario import Scenario

LOAD = 3  # width of the cell's load


def model_facts(scenario: Scenario) -> Tensor:
    """What models are, without units, [M, 7]: storage over the cell's, cost of full quality over the budget, the share
    of these steps that bring no quality, seconds without steps and at full quality over the deadline, and the mean
    payload over what the bandwidth at 1 bit/s/Hz and the backhaul carry before the deadline.
    """
    s = scenario
    full = s.full_steps.double()
    payload = sum(bits.double().mean(-1) if isinstance(bits, Tensor) else sum(bits) / 2
                  for bits in (s.input_bits, s.output_bits))  # fmt: skip
    columns = [
        s.model_storage / s.storage_capacity,
        5 * full * s.step_cost / s.step_budget,
        s.floor_steps / full,
        s.base_seconds / s.deadline,
        (s.seconds_per_step * full + s.base_seconds) / s.deadline,
        payload / (s.cell_bandwidth * s.deadline),
        payload / (s.backhaul_rate * s.deadline),
    ]
    rows = [torch.as_tensor(column).double().expand(s.models) for column in columns]
    return torch.stack(rows, -1).float()


class ModelSetQNetwork(nn.Module):
    """Q(s, c) = g(sum over models of a(x_m), and of b(x_m) where the cache holds m).

    A row x_m says how popular a model is, what it takes (`model_facts`), and what the cacher sees beside: whether the
    cell or another one holds it, and the load. All rows share one network, so that it serves other rankings, sizes
    and numbers of models than it was trained with.

    Args:
        scenario: of the models.
        observed: the entries of the cells' observation that a state is made of, popularity first.
        subsets: the caches on offer, bool [A, M].
    """

    Config = QConfig
    additive = False
    of_models = True
    facts: Tensor
    subsets: Tensor
    demands: Tensor

    def __init__(self, scenario: Scenario, observed: Sequence[str], subsets: Tensor, config: QConfig) -> None:
        super().__init__()
        self.observed = tuple(observed)
        self.widths = [
            {"popularity": scenario.popularity_width, "load": LOAD}.get(n, scenario.models) for n in observed
        ]
        facts = model_facts(scenario)
        columns = 2 + facts.shape[-1] + sum(LOAD if name == "load" else 1 for name in observed[1:])
        self.rows = nn.Linear(columns, config.hidden)
        self.both = Tail(config.hidden, 1, 2 * config.hidden, config.activation)
        self.tail = Tail(config.hidden, 2, 1, config.activation)
        self.state_is_popularity = scenario.popularity_observation != "state"
        self.register_buffer("facts", facts, persistent=False)
        self.register_buffer("demands", scenario.demands, persistent=False)
        self.register_buffer("subsets", subsets.float(), persistent=False)

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """What is the same for all caches [*, H], and what each model adds where it is held [*, M, H]."""
        popularity, *others = state.split(self.widths, -1)
        if not self.state_is_popularity:
            popularity = popularity @ self.demands
        shape = popularity.shape
        columns = [popularity.unsqueeze(-1), (popularity.unsqueeze(-1) + 1e-3).log() / 3]
        columns.append(self.facts.expand(*shape, -1))
        for name, value in zip(self.observed[1:], others, strict=True):
            columns.append(value.unsqueeze(-2).expand(*shape, LOAD) if name == "load" else value.unsqueeze(-1))
        always, held = self.both(self.rows(torch.cat(columns, -1))).chunk(2, -1)
        return always.mean(-2), held

    def forward(self, state: Tensor) -> Tensor:
        """Values of every cache on offer, [*, A]."""
        always, held = self.parts(state)
        return self.tail(always.unsqueeze(-2) + self.subsets @ held).squeeze(-1)

    def value(self, state: Tensor, cache: Tensor) -> Tensor:
        """Value of one cache [*, M] per state, [*]."""
        always, held = self.parts(state)
        return self.tail(always + (cache.to(held.dtype).unsqueeze(-1) * held).sum(-2)).squeeze(-1)
