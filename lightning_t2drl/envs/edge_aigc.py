"""The world as a TorchRL environment: one environment, two timescales, cells as agents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.policy import derive_seed
from lightning_t2drl.system import amend_allocation, amend_cache
from lightning_t2drl.system.records import record
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, hits, serve
from lightning_t2drl.system.world import State, advance, draw_noise, initial_state

SERVED = (
    "hit",
    "access_delay",
    "generation_delay",
    "backhaul_delay",
    "delay",
    "tv",
    "quality",
    "latency",
    "violated",
    "utility",
)


class EdgeAIGCEnv(EnvBase):
    """N worlds side by side; one step is one slot. Passes `check_env_specs`.

    Group `cells` (batch [N, B]) holds, per cell:

    - observation: `popularity` [P] (one-hot true state, or last frame's request frequencies), `popularity_state` (the
      truth, int64; for the oracle), `cache` [M] (what is latched), `request`, `input_bits`, `output_bits`, `gain`,
      `attached` [U], and `served`: what `serve` returned for the slot just ended, [U] each (0 after a reset);
    - action: `cache` [M], latched at a frame's first slot and ignored in the others, and `allocation` [U, 2], raw;
    - reward: `slot` [1], the mean utility of the slot, and `frame` [1], at a frame's last slot the mean of its slot
      rewards minus the switching cost, 0 otherwise.

    The root holds `frame_start` [1] and the done flags: an episode is truncated after T frames.

    Args:
        scenario: the world's constants.
        num_envs: N.
        seed: of the environment's own generator, which lives on `device`.
        device: where everything lives.
    """

    batch_locked = True

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.scenario = scenario.to(device)
        self.generator = torch.Generator(device=device)
        self._make_specs()
        self._set_seed(seed)
        self._one_hot = torch.eye(scenario.popularity_states, device=self.device)
        self._world, self._memory = self._fresh()
        self._align()

    # -- TorchRL's interface

    def _make_specs(self) -> None:
        s, n, device = self.scenario, self.batch_size[0], self.device
        cells, users = (n, s.cells), (n, s.cells, s.users)

        def unbounded(*shape: int, dtype: torch.dtype = torch.float32) -> Unbounded:
            return Unbounded(shape=shape, dtype=dtype, device=device)

        def flags(*shape: int) -> Binary:
            return Binary(n=shape[-1], shape=shape, dtype=torch.bool, device=device)

        served = {key: flags(*users) if key in ("hit", "violated") else unbounded(*users) for key in SERVED}
        observation = {
            "popularity": unbounded(*cells, s.popularity_width),
            "popularity_state": Categorical(s.popularity_states, shape=cells, device=device),
            "cache": flags(*cells, s.models),
            "request": Categorical(s.models, shape=users, device=device),
            **{key: unbounded(*users) for key in ("input_bits", "output_bits", "gain")},
            "attached": flags(*users),
            "served": Composite(served, shape=cells, device=device),
        }
        action = {
            "cache": flags(*cells, s.models),
            "allocation": Bounded(-1.0, 1.0, shape=(*users, 2), device=device),
        }
        reward = {"slot": unbounded(*cells, 1), "frame": unbounded(*cells, 1)}

        def group(content: dict[str, Any], **root: Any) -> Composite:
            return Composite(cells=Composite(content, shape=cells, device=device), shape=(n,), device=device, **root)

        self.observation_spec = group(observation, frame_start=flags(n, 1))
        self.action_spec = group({"action": Composite(action, shape=cells, device=device)})
        self.reward_spec = group({"reward": Composite(reward, shape=cells, device=device)})
        self.done_spec = Composite(
            {key: flags(n, 1) for key in ("done", "terminated", "truncated")}, shape=(n,), device=device
        )

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(derive_seed(0 if seed is None else seed, "environment"))

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        world, memory = self._fresh()
        if asked is not None:
            world, memory = _where(asked, world, self._world), _where(asked, memory, self._memory)
        self._world, self._memory = world, memory
        self._align()
        out = {"cells": self.observe(), "frame_start": self._frame_start()}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["cells", "action"]
        cells = self.play(action["cache"], action["allocation"])
        truncated = (self._world["slot"] >= self.scenario.slots_per_episode).unsqueeze(-1)
        flags = {"done": truncated, "truncated": truncated, "terminated": torch.zeros_like(truncated)}
        out = {"cells": cells, "frame_start": self._frame_start(), **flags}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    # -- the slot

    def play(self, cache: Tensor, raw: Tensor) -> TensorDict:
        """One slot: serve it, move the worlds on, and return the cells' next observation with `reward`, [N, B].

        This is `step` without the TorchRL bookkeeping around it.

        Args:
            cache: bool [N, B, M], latched where a frame starts.
            raw: raw allocation [N, B, U, 2].

        Raises:
            NonFiniteError: the allocation holds NaN or infinity.
        """
        served, rewards = self._serve(cache, raw)
        noise = draw_noise(self.scenario, self.batch_size[0], self.generator)
        if self._slot is not None:
            self._slot += 1
        may_change = self._slot is None or self._slot % self.scenario.popularity_change_every == 0
        self._world = advance(self.scenario, self._world, noise, may_change)
        cells = self._observation(served)
        cells["reward"] = self._group(rewards)
        return self._group(cells)

    def observe(self) -> TensorDict:
        """The cells' current observation [N, B], as after a reset, without moving the worlds."""
        return self._group(self._observation(self.observation_spec["cells", "served"].zero()))

    def _align(self) -> None:
        """Remember the slot that all worlds are at, so that no slot has to ask the device; None where they differ."""
        slots = self._world["slot"]
        self._slot = int(slots[0]) if bool((slots == slots[0]).all()) else None

    def _fresh(self) -> tuple[State, State]:
        """New worlds, and what the environment remembers of them."""
        s, n = self.scenario, self.batch_size[0]
        world = initial_state(s, n, self.generator)
        models, device = (n, s.cells, s.models), self.device
        memory = {
            "cache": torch.zeros(models, dtype=torch.bool, device=device),
            # Before anything was asked, every model counts alike.
            "frequencies": torch.full(models, 1 / s.models, device=device),
            "counts": torch.zeros(models, device=device),
            "frame_reward": torch.zeros(n, s.cells, device=device),
        }
        return world, memory

    def _serve(self, asked_cache: Tensor, raw: Tensor) -> tuple[TensorDict, dict[str, Tensor]]:
        """Latch the cache at a frame's start, amend the allocation, serve the slot and reckon its rewards."""
        if not math.isfinite(raw.sum().item()) and not bool(raw.isfinite().all()):  # a sum may overflow
            raise NonFiniteError("the allocation handed to the environment holds NaN or infinity")
        s, world, memory = self.scenario, self._world, self._memory
        phase = None if self._slot is None else self._slot % s.slots_per_frame
        starting, ending = phase in (None, 0), phase in (None, s.slots_per_frame - 1)  # for some world, that is
        starts = ends = world["slot"]  # not read in a slot that neither starts nor ends a frame
        if starting or ending:
            slot_of_frame = world["slot"] % s.slots_per_frame
            starts, ends = ((slot_of_frame == slot).unsqueeze(-1) for slot in (0, s.slots_per_frame - 1))
        cache, total, counts = memory["cache"], memory["frame_reward"], memory["counts"]
        if starting:
            cache = torch.where(starts.unsqueeze(-1), amend_cache(s, asked_cache), cache)
            total = total.masked_fill(starts, 0.0)
            counts = counts.masked_fill(starts.unsqueeze(-1), 0.0)
        request, attached = world["request"], world["attached"]
        shares = amend_allocation(raw, hits(cache, request), attached)
        members = None if s.cells == 1 else attached  # to one cell everybody is attached
        served = serve(
            s,
            request,
            world["input_bits"],
            world["output_bits"],
            world["gain"],
            cache,
            bandwidth=shares[..., 0],
            steps=shares[..., 1] * s.step_budget,
            attached=members,
        )
        reward = cell_mean(served["utility"], members)
        total = total + reward
        if starting and s.switch_cost:
            loaded = (s.model_storage * (cache & ~memory["cache"])).sum(-1).float()
            # Charged once per frame; the sum is divided by K at the frame's end.
            total = total - torch.where(starts, s.switch_cost * s.slots_per_frame * loaded, 0.0)
        self._memory = memory | {"cache": cache, "frame_reward": total}
        if s.popularity_observation == "frequencies":
            self._memory["counts"] = counts = counts.scatter_add(-1, request, attached.float())
            if ending:
                seen = counts / counts.sum(-1, keepdim=True).clamp_min(1.0)
                self._memory["frequencies"] = torch.where(ends.unsqueeze(-1), seen, memory["frequencies"])
        frame = torch.zeros_like(total)
        if ending:
            frame = (total / s.slots_per_frame).masked_fill(~ends, 0.0)
        return served, {"slot": reward.unsqueeze(-1), "frame": frame.unsqueeze(-1)}

    def _observation(self, served: TensorDict) -> dict[str, Any]:
        s, world, memory = self.scenario, self._world, self._memory
        if s.popularity_observation == "state":
            popularity = torch.nn.functional.embedding(world["popularity"], self._one_hot)
        else:
            popularity = memory["frequencies"]
        return {
            "popularity": popularity,
            "popularity_state": world["popularity"],
            "cache": memory["cache"],
            **{key: world[key] for key in ("request", "input_bits", "output_bits", "gain", "attached")},
            "served": served,
        }

    def _frame_start(self) -> Tensor:
        return (self._world["slot"] % self.scenario.slots_per_frame == 0).unsqueeze(-1)

    def _group(self, content: dict[str, Any]) -> TensorDict:
        return record(content, (self.batch_size[0], self.scenario.cells), self.device)

    # -- exact resume

    def get_state(self) -> dict[str, Any]:
        """Plain tensors that `set_state` turns back into exactly this moment of exactly this randomness."""
        return {
            "world": {key: value.contiguous() for key, value in self._world.items()},
            "memory": dict(self._memory),
            "generator": self.generator.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._world, self._memory = (
            {key: value.to(self.device) for key, value in state[part].items()} for part in ("world", "memory")
        )
        self.generator.set_state(state["generator"])
        self._align()


def _where(asked: Tensor, new: State, old: State) -> State:
    """New values for the worlds that asked for them, bool [N, 1], old ones for the others."""
    return {key: torch.where(asked.reshape(-1, *[1] * (value.ndim - 1)), value, old[key]) for key, value in new.items()}
