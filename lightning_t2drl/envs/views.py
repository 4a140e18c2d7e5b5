"""What the Gymnasium and PettingZoo views share: an agent from outside decides a part, a rule of ours the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.envs.edge_aigc import EdgeAIGCEnv
from lightning_t2drl.envs.worlds import Cells
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.registry import build, locate
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.metrics import slot_metrics
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import CONFIG_ROOT, load_scenario
from lightning_t2drl.system.serving import situation

Array = np.ndarray[Any, Any]

DECIDES = {
    "allocation": ("users", "cache"),
    "cache": ("popularity", "cache", "load"),
    "both": ("users", "request", "popularity", "cache", "load", "frame_start"),
}  # what an agent decides: what it sees for that
OBSERVATIONS = ("flat", "dict")
REWARDS = ("slot", "frame")
FLAGS = ("cache", "frame_start", "nearby")
LIMIT = 10.0  # observations are clipped to [-LIMIT, LIMIT]; nothing but a vanishing link goes beyond


@runtime_checkable
class CacheRule(Protocol):
    """What decides the caches where the agent does not: any `cachers.base.Cacher`."""

    scenario: Scenario

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor: ...
    def start_episode(self, observation: TensorDict) -> None: ...
    def observe(self, observation: TensorDict) -> None: ...
    def seed(self, seed: int, *labels: object) -> None: ...


@runtime_checkable
class AllocationRule(Protocol):
    """What allocates where the agent does not: any `allocators.base.Allocator`."""

    scenario: Scenario

    def decide(self, observation: TensorDict, explore: bool = False) -> Tensor: ...
    def act(self, state: TensorDict, explore: bool = False) -> Tensor: ...
    def seed(self, seed: int, *labels: object) -> None: ...


class View:
    """N worlds on the CPU, of which an agent decides a part.

    One step is one slot; where the agent decides the cache alone, one step is one frame, whose slots the allocator
    plays. An agent that decides the allocation sees the cache as the cacher set it for the frame.

    An observation has these fields for each cell, float32 if not said otherwise:

    - `users` [U, 11]: one row per user, the columns of `networks.features.UserFeatures`;
    - `request` [U], int64: the requested model;
    - `popularity` [P]: what the scenario lets a cacher see of the demand;
    - `cache` [M], int8: the models that the cell holds now;
    - `load` [3]: what the last frame's users would take of storage, bandwidth and steps;
    - `frame_start` [1], int8: whether the caches are set in this step;
    - `nearby` [M], int8: the models that other cells hold, where cells fetch from each other and the agent caches.

    Args:
        scenario: name of a file of `configs/env/`, or a `Scenario`.
        decides: `allocation` (sees `users`, `cache`), `cache` (sees `popularity`, `cache`, `load`) or `both` (sees
            all).
        observation: `dict` (the fields by name) or `flat` (one vector, cell by cell, fields in the order above,
            `request` one-hot).
        cacher: sets the caches if the agent does not: the name of a rule (`popular`, `lru`, `oracle`, ...) or a
            `Cacher`, such as a trained one.
        allocator: allocates if the agent does not: the name of a rule (`equal`, `exact`, ...) or an `Allocator`.
        reward: `slot`: the mean utility of the slot (the sum over the slots where a step is a frame). `frame`: at a
            frame's last slot the mean of its slots less the cost of loading models, 0 before. None: `frame` where a
            step is a frame, else `slot`.
        num_envs: N.
        joint: whether one agent decides for all cells. Then arrays are [N, B, ...], for a scenario of one cell
            [N, ...], and flat observations always [N, F]. Otherwise arrays are always [N, B, ...].
        compile: whether a slot and `users` become one kernel each, or the options of `torch.compile` for that; see
            `EdgeAIGCEnv.compile`.
        **overrides: of the scenario, see `load_scenario`.

    Raises:
        UserError: an argument that cannot be; one line.
    """

    def __init__(
        self,
        scenario: str | Scenario = "paper",
        decides: str = "allocation",
        observation: str = "flat",
        cacher: str | CacheRule = "popular",
        allocator: str | AllocationRule = "equal",
        reward: str | None = None,
        num_envs: int = 1,
        joint: bool = True,
        compile: bool | dict[str, Any] = False,
        **overrides: Any,
    ) -> None:
        self.decides = _one_of("decides", decides, DECIDES)
        self.flat = _one_of("observation", observation, OBSERVATIONS) == "flat"
        self.reward = _one_of("reward", reward or ("frame" if decides == "cache" else "slot"), REWARDS)
        if isinstance(scenario, Scenario) and overrides:
            raise UserError(f"{next(iter(overrides))}: change it in the Scenario, or give the scenario by its name")
        self.scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, **overrides)
        caches: CacheRule = _rule("cacher", cacher, CacheRule, self.scenario)
        allocates: AllocationRule = _rule("allocator", allocator, AllocationRule, self.scenario)
        self.cacher = caches if self.decides == "allocation" else None
        self.allocator = allocates if self.decides == "cache" else None
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise UserError(f"num_envs: {num_envs!r} is not a whole number of at least 1")
        cooperates = self.scenario.cooperates and self.decides != "allocation"
        self.fields = DECIDES[self.decides] + ("nearby",) * cooperates
        self.joint = joint
        self._leading = (self.scenario.cells,) if joint and self.scenario.cells > 1 else ()
        self.env = EdgeAIGCEnv(self.scenario, num_envs)
        self.worlds = self.env.worlds  # on plain tensors: an agent from outside is shown arrays, no TensorDict
        self.users: Callable[..., dict[str, Tensor]] = UserFeatures(self.scenario)
        if compile:
            options: dict[str, Any] = compile if isinstance(compile, dict) else {}
            self.worlds.compile(**options)
            self.users(self.scenario, self.worlds.observe())  # what a scenario keeps is made before
            self.users = torch.compile(self.users, **({"fullgraph": True, "dynamic": False} | options))
        self.over = True  # the next call must be `reset`
        self.shown: dict[str, Any] = {}  # what `draw` takes of the slot that was last served

    # -- spaces

    def observation_space(self) -> spaces.Space[Any]:
        """What one agent sees of one world."""
        s, leading = self.scenario, self._leading

        def box(*shape: int, low: float = -LIMIT, high: float = LIMIT) -> spaces.Box:
            return spaces.Box(low, high, (*leading, *shape), np.float32)

        every: dict[str, spaces.Space[Any]] = {
            "users": box(s.users, UserFeatures.PER_USER),
            "request": spaces.MultiDiscrete(np.full((*leading, s.users), s.models)),
            "popularity": box(s.popularity_width, low=0.0, high=1.0),
            "cache": spaces.MultiBinary((*leading, s.models)),
            "load": box(3, low=0.0),
            "frame_start": spaces.MultiBinary((*leading, 1)),
            "nearby": spaces.MultiBinary((*leading, s.models)),
        }
        if not self.flat:
            return spaces.Dict({name: every[name] for name in self.fields})
        sizes = {"users": s.users * UserFeatures.PER_USER, "request": s.users * s.models, "load": 3, "frame_start": 1}
        sizes |= {"popularity": s.popularity_width, "cache": s.models, "nearby": s.models}
        width = sum(sizes[name] for name in self.fields)
        return spaces.Box(-LIMIT, LIMIT, (width * (s.cells if self.joint else 1),), np.float32)

    def action_space(self) -> spaces.Space[Any]:
        """What one agent decides in one world, see `split`."""
        s, leading = self.scenario, self._leading
        if self.decides == "cache":
            return spaces.MultiBinary((*leading, s.models) if leading else s.models)
        shape = (s.users, 2) if self.decides == "allocation" else (s.models + 2 * s.users,)
        return spaces.Box(-1.0, 1.0, (*leading, *shape), np.float32)

    def split(self, action: Any) -> tuple[Tensor | None, Tensor | None]:
        """The cache, bool [N, B, M], and the raw allocation [N, B, U, 2] that an action asks for; None: not asked.

        `cache` decides by M flags, `allocation` by [U, 2] numbers in [-1, 1] (a user's bandwidth, steps), `both` by one
        vector: M numbers, of which those above 0 ask for their model, then the allocation row by row. The amender
        makes both feasible: models are kept in index order while they fit.

        Raises:
            UserError: the action has another number of elements, or another shape.
            NonFiniteError: it holds NaN or infinity.
        """
        s, batch = self.scenario, (self.env.batch_size[0], self.scenario.cells)
        width = {"cache": s.models, "allocation": 2 * s.users, "both": s.models + 2 * s.users}[self.decides]
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
                numbers = np.array(action, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"action: no array of numbers ({error}); see action_space") from None
        if numbers.size != batch[0] * batch[1] * width:
            raise UserError(f"action: {numbers.size} numbers, not {batch[0] * batch[1] * width}; see action_space")
        own = (s.users, 2) if self.decides == "allocation" else (width,)
        fits = ((*batch, *own), (*batch, width), (batch[0], batch[1] * width), (numbers.size,))
        if _long(numbers.shape) not in map(_long, fits):
            raise UserError(f"action: shape {numbers.shape} does not fit {(*batch, *own)}; see action_space")
        if not np.isfinite(numbers).all():
            raise NonFiniteError("the action handed to the environment holds NaN or infinity")
        given = torch.from_numpy(np.ascontiguousarray(numbers)).view(*batch, width)
        models = 0 if self.decides == "allocation" else s.models
        raw = None if self.decides == "cache" else given[..., models:].unflatten(-1, (s.users, 2))
        return given[..., :models] > 0 if models else None, raw

    # -- episodes

    @torch.no_grad()
    def reset(self, seed: Any = None) -> dict[str, Array] | Array:
        """Start an episode in all worlds; with a seed, so do all random numbers, the rules' among them."""
        if seed is not None:
            self.env.set_seed(derive_seed(0, seed))
            for rule in (self.cacher, self.allocator):
                if rule is not None:
                    rule.seed(derive_seed(0, seed), type(rule).__name__)
        self.worlds.reset()
        self.slots, self.over = 0, False
        self.cells: Cells = self.worlds.observe()
        if self.cacher is not None:
            self.cacher.start_episode(self._for_rules())
        self._start_frame()
        self._show(self.worlds.state["position"], self.cells, None)
        return self._observation()

    @torch.no_grad()
    def step(self, action: Any) -> tuple[dict[str, Array] | Array, Tensor, dict[str, Tensor]]:
        """One slot, or one frame where the agent decides the cache alone.

        Returns:
            The observation, the rewards [N, B], and means over users and slots by metric, [N] each (`slot_metrics`).
        """
        if self.over:
            raise gymnasium.error.ResetNeeded("the episode is over, or none was started: call reset()")
        cache, raw = self.split(action)
        if cache is not None:
            self._latch(cache)
        if self.allocator is None:
            assert raw is not None
            reward, metrics = self._slot(raw)
        else:
            slots = [self._slot(self.allocator.decide(self._for_rules())) for _ in range(self.scenario.slots_per_frame)]
            reward = torch.stack([value for value, _ in slots]).sum(0)
            metrics = {name: torch.stack([m[name] for _, m in slots]).mean(0) for name in slots[0][1]}
        self.over = self.slots >= self.scenario.slots_per_episode
        if (
            self.slots % self.scenario.slots_per_frame == 0
        ):  # also after the last: an episode is cut off, it does not end
            self._start_frame()
        return self._observation(), reward, metrics

    def picture(self) -> Array:
        """The slot that was last served in the first world, see `envs.picture.paint`."""
        from lightning_t2drl.envs.picture import paint, pixels  # matplotlib takes its time

        return pixels(paint(self.scenario, **self.shown))

    def _start_frame(self) -> None:
        if self.cacher is not None:
            self._latch(self.cacher.decide(self._for_rules()))

    def _latch(self, cache: Tensor) -> None:
        self.worlds.latch(cache)
        self.cells = self.worlds.observe()

    def _slot(self, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        before, position = self.cells, self.worlds.state["position"]
        if self.cacher is not None and getattr(self.cacher, "watches", True):
            self.cacher.observe(self._for_rules())
        self.cells = self.worlds.play(raw)
        self.slots += 1
        served = self.cells["served"]
        self._show(position, before, served)
        reward = self.cells["reward"][self.reward].squeeze(-1)
        return reward, slot_metrics(self.scenario, served, before["attached"], before["request"])

    def _for_rules(self) -> TensorDict:
        """The cells' observation as policies of ours read it."""
        return TensorDict(self.cells, batch_size=(self.worlds.count, self.scenario.cells))

    def _show(self, position: Tensor, cells: Cells, served: Cells | None) -> None:
        self.shown = {"slot": self.slots, "position": position, "cells": cells, "served": served}

    def _observation(self) -> dict[str, Array] | Array:
        return self.see(self.cells, self.slots % self.scenario.slots_per_frame == 0)

    def see(self, cells: Mapping[str, Any], frame_start: bool = False) -> dict[str, Array] | Array:
        """What agents see of cells [N, B] as `EdgeAIGCEnv` observes them: arrays of all N worlds, of any N."""
        wanted = self.fields
        fields = {name: cells[name] for name in wanted if name in cells}
        if "users" in wanted:
            rows = self.users(self.scenario, situation(cells))["features"].clamp(-LIMIT, LIMIT)
            fields["users"] = torch.where(cells["attached"].unsqueeze(-1), rows, 0.0)
        if "load" in wanted:
            fields["load"] = cells["load"].clamp(0.0, LIMIT)
        if "frame_start" in wanted:
            fields["frame_start"] = torch.full((*cells["cache"].shape[:2], 1), frame_start)
        if not self.flat:
            one = self.joint and not self._leading
            fields = {name: value.squeeze(1) if one else value for name, value in fields.items()}
            return {name: _array(fields[name], name in FLAGS) for name in wanted}
        if "request" in wanted:
            fields["request"] = torch.nn.functional.one_hot(fields["request"], self.scenario.models)
        flat = torch.cat([fields[name].flatten(2).float() for name in wanted], -1)
        return _array(flat.flatten(1) if self.joint else flat)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its axes of length 1, which one world, cell or user may have or not."""
    return tuple(length for length in shape if length != 1)


def _array(value: Tensor, flags: bool = False) -> Array:
    """A copy: neither the next step nor the reader changes the other's."""
    return (value.to(torch.int8) if flags else value).numpy().copy()


def part(observation: dict[str, Array] | Array, *index: int) -> dict[str, Array] | Array:
    """One world's or cell's observation, by its leading indices, as arrays of their own."""
    if isinstance(observation, dict):
        return {name: value[index].copy() for name, value in observation.items()}
    return observation[index].copy()


def _one_of(key: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    if value not in known:
        raise UserError(f"{key}: {value!r} is none of {', '.join(known)}")
    return value


def _rule(group: str, given: Any, kind: type[CacheRule] | type[AllocationRule], scenario: Scenario) -> Any:
    """A policy that decides by a rule, by its name in `configs/<group>/`, or one that the caller made."""
    if not isinstance(given, str):
        if not isinstance(given, kind):
            raise UserError(f"{group}: {given!r} is neither a rule by its name nor a policy")
        here, there = scenario.as_dict(), given.scenario.as_dict()
        if different := [key for key in here if here[key] != there[key] and key != "name"]:
            raise UserError(f"{group}: it was made for another scenario than the environment's; {', '.join(different)} "
                            "differ")  # fmt: skip
        return given
    rules = _rules(group)
    if given not in rules:
        why = "learns: train it, then hand over the object" if _file(group, given).is_file() else "no such rule"
        raise UserError(f"{group}={given}: {why}; rules are {', '.join(sorted(rules))}")
    return build(rules[given], scenario, key=group)


def _file(group: str, name: str) -> Any:
    return CONFIG_ROOT / group / f"{name}.yaml"


def _rules(group: str) -> dict[str, Any]:
    """Configs of the policies that do not learn, by name."""
    found = {}
    for path in (CONFIG_ROOT / group).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        if "defaults" not in content and "_target_" in content and not locate(content["_target_"]).learns:
            found[path.stem] = content
    return found
