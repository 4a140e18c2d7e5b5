"""Q-networks over caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_t2drl.checks import one_of, within
from lightning_t2drl.networks.activations import ACTIVATIONS
from lightning_t2drl.networks.mlp import Tail


@dataclass
class QConfig:
    """Keys of `configs/cacher/network/*.yaml`."""

    _target_: str = ""
    hidden: int = 128
    activation: str = "relu"

    def __post_init__(self) -> None:
        within("", self, hidden=(1, 1e5))
        one_of("", self, activation=ACTIVATIONS)


class MLPQNetwork(nn.Module):
    """The published form: an MLP from the state to one value per subset of models.

    Args:
        state_width: S.
        subsets: the caches on offer, bool [A, M].
    """

    Config = QConfig
    additive = False
    place: Tensor
    bits: Tensor

    def __init__(self, state_width: int, subsets: Tensor, config: QConfig) -> None:
        super().__init__()
        self.first = nn.Linear(state_width, config.hidden)
        self.tail = Tail(config.hidden, 2, len(subsets), config.activation)
        bits = 2 ** torch.arange(subsets.shape[-1])
        # From a subset's bits, read as a number, to its place among those on offer.
        place = torch.zeros(2 ** subsets.shape[-1], dtype=torch.int64)
        place[(subsets * bits).sum(-1)] = torch.arange(len(subsets))
        self.register_buffer("bits", bits, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Values of every cache on offer, [*, A]."""
        return self.tail(self.first(state))

    def value(self, state: Tensor, cache: Tensor) -> Tensor:
        """Value of one cache [*, M] per state, [*]."""
        index = self.place[(cache * self.bits).sum(-1)]
        return self(state).gather(-1, index.unsqueeze(-1)).squeeze(-1)


class CacheQNetwork(nn.Module):
    """Q(s, c) with the cache's bits as input, so that what is learned of one cache helps with similar ones.

    The first layer splits into the state's and the cache's share, so that comparing A caches costs A rows of the
    second layer only. Arguments as for `MLPQNetwork`.
    """

    Config = QConfig
    additive = False
    subsets: Tensor

    def __init__(self, state_width: int, subsets: Tensor, config: QConfig) -> None:
        super().__init__()
        self.from_state = nn.Linear(state_width, config.hidden)
        self.from_cache = nn.Linear(subsets.shape[-1], config.hidden, bias=False)
        self.tail = Tail(config.hidden, 2, 1, config.activation)
        self.register_buffer("subsets", subsets.float(), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Values of every cache on offer, [*, A]."""
        return self.tail(self.from_state(state).unsqueeze(-2) + self.from_cache(self.subsets)).squeeze(-1)

    def value(self, state: Tensor, cache: Tensor) -> Tensor:
        """Value of one cache [*, M] per state, [*]."""
        return self.tail(self.from_state(state) + self.from_cache(cache.to(state.dtype))).squeeze(-1)


class ModelValueNetwork(nn.Module):
    """Q(s, c) = v_0(s) + sum_m c_m v_m(s): a value per model, so that the best cache is a knapsack."""

    Config = QConfig
    additive = True

    def __init__(self, state_width: int, models: int, config: QConfig) -> None:
        super().__init__()
        self.first = nn.Linear(state_width, config.hidden)
        self.tail = Tail(config.hidden, 2, models + 1, config.activation)

    def forward(self, state: Tensor) -> Tensor:
        """Values of the models, [*, M]."""
        return self.tail(self.first(state))[..., 1:]

    def value(self, state: Tensor, cache: Tensor) -> Tensor:
        """Value of one cache [*, M] per state, [*]."""
        values = self.tail(self.first(state))
        return values[..., 0] + (values[..., 1:] * cache).sum(-1)
