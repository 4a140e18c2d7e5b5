"""Double Q-learning over caches: what the DDQN and the knapsack cacher have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.graphs import CacherGraph
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.policy import LEARNING_RATE_SCHEDULES, Exported, Graph, Metrics, Optimise
from lightning_t2drl.registry import build, class_of
from lightning_t2drl.system.caching import amend_cache, fill_in_order
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario


@dataclass
class QLearningConfig:
    """Keys of `configs/cacher/{ddqn,knapsack}.yaml` that both cachers read."""

    _target_: str = ""
    network: Any = None
    observe_cache: bool = False
    observe_load: bool = False
    observe_nearby: bool = False
    cooperate: bool = False
    learning_rate: float = 1e-3
    learning_rate_schedule: str = "cosine"
    discount: float = 0.0
    target_every: int = 100
    epsilon: float = 1.0
    epsilon_end: float = 0.02
    epsilon_fraction: float = 0.6
    epsilon_near: float = 0.0

    def __post_init__(self) -> None:
        within("", self, learning_rate=(0, 1), discount=(0, 1), target_every=(1, 1e9))
        one_of("", self, learning_rate_schedule=LEARNING_RATE_SCHEDULES)
        within("", self, epsilon=(0, 1), epsilon_end=(0, 1), epsilon_fraction=(0, 1), epsilon_near=(0, 1))


class QLearningCacher(Cacher):
    """A Q-network, its target and an epsilon schedule; subclasses say what is on offer and which of it is best.

    The network has `value(state [*, S], cache [*, M]) -> [*]`.

    What loading models costs is known, so it is not learned: where it is charged for and the network does not see what
    is held, Q(s, held, c) = W(s, c) - charge(held, c), and the network is W, the value after loading.

    Cells that `cooperate` decide one after the other, each seeing what the others hold by then, and learn from what all
    cells earn: what one holds spares the others' misses the way to the cloud.
    """

    Config: ClassVar[type] = QLearningConfig
    learns = True
    config: QLearningConfig

    def __init__(self, scenario: Scenario, config: QLearningConfig) -> None:
        super().__init__(scenario, config)
        for key in ("observe_nearby", "cooperate"):
            if getattr(config, key) and not scenario.cooperates:
                raise UserError(f"cacher.{key}: cells see each other's caches only with env.edge_link_mbps")
        self.updates = 0
        self.charge_apart = not config.observe_cache  # whether the network's values are without the charge
        self.network = self.build_network()
        self.target_network = self.build_network().requires_grad_(False)
        self.target_network.load_state_dict(self.network.state_dict())

    def build_network(self) -> nn.Module:
        raise NotImplementedError

    def make_network(self, choices: Any, additive: bool) -> nn.Module:
        """The configured network over `choices`.

        Raises:
            UserError: it values models one by one where whole caches are to be compared, or the other way round.
        """
        network = class_of(self.config.network, "cacher.network")
        if bool(getattr(network, "additive", additive)) is not additive:
            right = (
                "a value per model: cacher/network=models" if additive else "a value per cache: cacher/network=caches"
            )
            raise UserError(
                f"cacher.network: {network.__name__} does not fit {type(self).__name__}, which needs {right}"
            )
        if getattr(network, "of_models", False):
            return build(self.config.network, self.scenario, self.observed, choices, key="cacher.network")
        return build(self.config.network, self.state_width, choices, key="cacher.network")

    def best(self, network: nn.Module, state: Tensor, held: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        """The cache of highest value, bool [*, M].

        Args:
            state: [*, S], or [r, S] with `row`.
            held: [*, M], if the charge is to be taken from values.
            row: the state of each, int64 [*], where many are the same.
        """
        raise NotImplementedError

    def charge(self, held: Tensor, cache: Tensor) -> Tensor:
        """What loading costs, [*], in units of the frame reward: that of models of `cache` [*, M] that are not held."""
        loaded = amend_cache(self.scenario, cache) & ~held
        return self.scenario.switch_cost * (loaded * self.scenario.model_storage).sum(-1).float()

    def random_cache(self, batch: tuple[int, ...]) -> Tensor:
        """An exploratory cache, bool [*batch, M]: models in random order while they fit.

        Where the charge for loading is computed, a quarter of them is left out: loading less can be better.
        """
        cache = fill_in_order(self.scenario, self._uniform(*batch, self.scenario.models))
        return cache & (self._uniform(*cache.shape) < 0.75) if self.knows_charge else cache

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        return {"q": self.adam(self.network.parameters(), self.config.learning_rate)}

    @property
    def epsilon(self) -> float:
        """Share of random decisions: falls linearly over `epsilon_fraction` of the run, then stays."""
        c = self.config
        done = min(self.progress / c.epsilon_fraction, 1.0) if c.epsilon_fraction else 1.0
        return c.epsilon + (c.epsilon_end - c.epsilon) * done

    @property
    def state_width(self) -> int:
        """S, what the network sees of a state."""
        widths = {"popularity": self.scenario.popularity_width, "load": 3}
        return sum(widths.get(name, self.scenario.models) for name in self.observed)

    @property
    def observed(self) -> tuple[str, ...]:
        """The entries of a cell's observation that the network sees."""
        c = self.config
        optional = {"cache": c.observe_cache, "load": c.observe_load, "nearby": c.observe_nearby or c.cooperate}
        return ("popularity", *(name for name, wanted in optional.items() if wanted))

    @property
    def knows_charge(self) -> bool:
        """Whether the charge for loading is computed where caches are compared."""
        return self.charge_apart and self.scenario.switch_cost > 0

    @property
    def needed(self) -> tuple[str, ...]:
        """The entries of a cell's observation that a decision takes: what the network sees, and what is held."""
        return (self.observed[0], "cache", *self.observed[1:]) if self.knows_charge else self.observed

    def state(self, observation: TensorDict) -> TensorDict:
        return observation.select(*self.needed, *(["cache"] if self.config.cooperate else []))

    def transition(self, state: TensorDict, cache: Tensor, reward: Tensor, next_state: TensorDict) -> TensorDict:
        if self.knows_charge:
            reward = reward + self.charge(state["cache"], cache).unsqueeze(-1)
        if self.config.cooperate:
            seen = self.seen_in_turn(state["cache"], amend_cache(self.scenario, cache))
            state, next_state = state.copy().set("nearby", seen).select(*self.needed), next_state.select(*self.needed)
            reward = reward + earned_by_others(reward)
        return super().transition(state, cache, reward, next_state)

    def seen_in_turn(self, held: Tensor, chosen: Tensor) -> Tensor:
        """Which models others hold when it is a cell's turn, bool [*, B, M]; the first cell begins.

        Args:
            held: at the frame's start, [*, B, M].
            chosen: for the frame, likewise.
        """
        turns = (torch.cat((chosen[..., :cell, :], held[..., cell:, :]), -2) for cell in range(self.scenario.cells))
        return torch.stack([held_elsewhere(caches)[..., cell, :] for cell, caches in enumerate(turns)], -2)

    def inputs(self, state: Mapping[str, Tensor]) -> Tensor:
        """What the network sees of a state [*]: [*, S]."""
        if self.observed == ("popularity",):
            return state["popularity"]
        return torch.cat([_seen(name, state[name]) for name in self.observed], -1)

    def choose(self, state: Mapping[str, Tensor]) -> Tensor:
        """The cache of highest value, bool [*, M]."""
        if not self.knows_charge:
            return self.best(self.network, self.inputs(state))
        return self.best(self.network, self.inputs(state), self.held(state))

    def held(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """What is held [*, M], where the charge for loading is computed."""
        return state["cache"] if self.knows_charge else None

    @torch.no_grad()
    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor:
        batch = observation.batch_size
        all_cells = len(batch) > 1 and batch[-1] == self.scenario.cells
        if not (self.config.cooperate and all_cells):
            return self.decide_alone(observation, explore)
        asked, now = observation["cache"].clone(), observation["cache"].clone()
        for cell in range(self.scenario.cells):
            own = observation[..., cell].copy().set("nearby", held_elsewhere(now)[..., cell, :])
            asked[..., cell, :] = self.decide_alone(own, explore)
            now[..., cell, :] = amend_cache(self.scenario, asked[..., cell, :])
        return asked

    def decide_alone(self, observation: TensorDict, explore: bool = False) -> Tensor:
        """The caches of cells that take what others hold as given, bool [*, M]."""
        greedy = self.choose(observation)
        if not explore:
            return greedy
        batch = tuple(observation.batch_size)
        drawn = self._uniform(*batch, 1)
        tried = self.random_cache(batch)
        if near := self.config.epsilon_near:
            tried = torch.where(drawn < near * self.epsilon, self.near(greedy), tried)
        return torch.where(drawn < self.epsilon, tried, greedy)

    def near(self, cache: Tensor) -> Tensor:
        """A cache [*, M] that takes in one random model for as many of its own as must leave; bool [*, M]."""
        other = torch.nn.functional.one_hot(
            (self._uniform(*cache.shape[:-1]) * cache.shape[-1]).long(), cache.shape[-1]
        )
        return fill_in_order(self.scenario, self._uniform(*cache.shape) + cache + 2.0 * other)

    def update(self, batch: TensorDict, optimise: Optimise) -> Metrics:
        loss = self.loss(self.inputs(batch["state"]), batch["cache"], self.target(batch))
        optimise("q", loss)
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.target_network.load_state_dict(self.network.state_dict())
        return {"q_loss": loss.detach()}

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """Double-Q target y = r + gamma Q'(s', argmax_c Q(s', c)), [b].

        With a known charge, Q = W - charge, and the batch's mean is taken from Q' (relative value iteration): what is
        the same for all caches, up to r / (1 - gamma), need not be learned before what tells them apart.
        """
        reward = batch["reward"].squeeze(-1)
        if not self.config.discount:
            return reward
        following, held = self.inputs(batch["next_state"]), self.held(batch["next_state"])
        if held is None:
            cache = self.best(self.network, following)
        else:  # most states are the same where popularity is all that is seen
            states, row = following.unique(dim=0, return_inverse=True)
            cache = self.best(self.network, states, held, row)
        value = self.target_network.value(following, cache).float()  # type: ignore[operator]
        if held is not None:
            value = value - self.charge(held, cache)
            value = value - value.mean()
        return reward + self.config.discount * value

    def loss(self, state: Tensor, cache: Tensor, target: Tensor) -> Tensor:
        """Mean squared TD error."""
        return (self.network.value(state, cache).float() - target).square().mean()  # type: ignore[operator]

    def export(self) -> Exported:
        inputs = {"popularity": torch.full((3, self.scenario.popularity_width), 1 / self.scenario.popularity_width)}
        if "cache" in self.needed:
            inputs["held"] = torch.ones(3, self.scenario.models) > 0
        if self.config.observe_load:
            inputs["load"] = torch.ones(3, 3)
        if "nearby" in self.observed:
            inputs["nearby"] = torch.ones(3, self.scenario.models) > 0
        graph = Graph(CacherGraph(self), inputs, {name: {0: "batch"} for name in inputs}, "cache")
        facts = {f"observes_{name}": name in self.needed for name in ("cache", "load", "nearby")}
        return Exported({"cacher": graph}, facts)

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"updates": self.updates, "charge_apart": self.charge_apart}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.updates = state["updates"]
        self.parameters_loaded(state)

    def parameters_loaded(self, state: Mapping[str, Any]) -> None:
        self.charge_apart = state.get("charge_apart", False)  # earlier networks have learned what they were charged

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def earned_by_others(reward: Tensor) -> Tensor:
    """What the other cells of each world earned [N, B, 1] from each cell's reward, less its mean over worlds.

    The mean tells how good the frame's policies were, not what a cell did; one world has no other to compare with.
    """
    others = reward.sum(-2, keepdim=True) - reward
    return others - others.mean(0) if len(others) > 1 else others


def _seen(name: str, value: Tensor) -> Tensor:
    """An entry as the network sees it: loads by their logarithm, so that twice the users are as far at any load."""
    return value.clamp_min(1e-2).log() if name == "load" else value.float()
