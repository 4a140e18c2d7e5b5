"""The world as a TorchRL environment: one environment, two timescales, cells as agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system import amend_allocation, amend_cache, service
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, hits, serve, situation
from lightning_t2drl.system.world import State, advance, draw_noise, initial_state

SERVED = (
    "hit",
    "access_delay",
    "generation_delay",
    "backhaul_delay",
    "delay",
    "metric",
    "quality",
    "latency",
    "violated",
    "utility",
)


class EdgeAIGCEnv(EnvBase):
    """N worlds side by side; one step is one slot. Passes `check_env_specs`.

    Group `cells` (batch [N, B]) holds, per cell:

    - observation: `popularity` [P] (one-hot true state, its request probabilities, or last frame's request
      frequencies), `popularity_state` (the truth, int64; for the oracle), `cache` [M] (what is latched), `load` [3]
      (what the users attached in the last frame's slots would take of storage, bandwidth and steps, see
      `load_per_user`), `request`, `input_bits`, `output_bits`, `gain`, `attached` [U], and `served`: what `serve`
      returned for the slot just ended, [U] each, and the executed `shares` [U, 2] of bandwidth and of steps (0 after
      a reset). With several cells also `uplink_interference`, `downlink_interference` [U], W, and `handover` [U];
      with an edge link `nearby` [M], what other cells hold; with recorded demand `ahead` [M], how often each model is
      asked for from now to the frame's end (for the oracle in hindsight);
    - action: `cache` [M], latched at a frame's first slot and ignored in the others, and `allocation` [U, 2], raw;
    - reward: `slot` [1], the sum of the users' utilities times B / users present, so that the mean over cells is the
      mean over users (one cell: their mean utility), and `frame` [1], at a frame's last slot the mean of its slot
      rewards minus the switching cost, 0 otherwise.

    The root holds `frame_start` [1] and the done flags: an episode is truncated after T frames.

    Args:
        scenario: the world's constants.
        num_envs: N.
        seed: of the environment's own generator, which lives on `device`.
        device: where everything lives.
        held_out: whether recorded demand is played from what is held out for evaluation.
    """

    batch_locked = True

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        held_out: bool = False,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.scenario = scenario.to(device)
        self.held_out = held_out
        self.generator = torch.Generator(device=device)
        self._make_specs()
        self._set_seed(seed)
        self._popularity_table = self._seen_popularity()
        self._load = load_per_user(self.scenario)
        self._world, self._memory = self._fresh()

    # -- TorchRL's interface

    def _make_specs(self) -> None:
        s, n, device = self.scenario, self.batch_size[0], self.device
        cells, users = (n, s.cells), (n, s.cells, s.users)

        def unbounded(*shape: int, dtype: torch.dtype = torch.float32) -> Unbounded:
            return Unbounded(shape=shape, dtype=dtype, device=device)

        def flags(*shape: int) -> Binary:
            return Binary(n=shape[-1], shape=shape, dtype=torch.bool, device=device)

        served = {key: flags(*users) if key in ("hit", "violated") else unbounded(*users) for key in SERVED}
        served["shares"] = unbounded(*users, 2)
        several: dict[str, Any] = {}
        if s.cells > 1:
            served["handover"] = flags(*users)
            several = {"uplink_interference": unbounded(*cells), "downlink_interference": unbounded(*users)}
            several["handover"] = flags(*users)
        if s.cooperates:
            served["nearby"] = flags(*users)
            several["nearby"] = flags(*cells, s.models)
        if s.recorded_demand:
            several["ahead"] = unbounded(*cells, s.models, dtype=torch.int32)
        observation = {
            "popularity": unbounded(*cells, s.popularity_width),
            "popularity_state": Categorical(s.popularity_states, shape=cells, device=device),
            "cache": flags(*cells, s.models),
            "load": unbounded(*cells, 3),
            "request": Categorical(s.models, shape=users, device=device),
            **{key: unbounded(*users) for key in ("input_bits", "output_bits", "gain")},
            "attached": flags(*users),
            **several,
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
        out = {"cells": self.observe(), "frame_start": self._frame_start()}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["cells", "action"]
        if not bool(action["allocation"].isfinite().all()):
            raise NonFiniteError("the allocation handed to the environment holds NaN or infinity")
        self._latch(action["cache"])
        cells = self.play(action["allocation"])
        truncated = (self._world["slot"] >= self.scenario.slots_per_episode).unsqueeze(-1)
        flags = {"done": truncated, "truncated": truncated, "terminated": torch.zeros_like(truncated)}
        out = {"cells": cells, "frame_start": self._frame_start(), **flags}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    # -- frames and slots

    def latch(self, cache: Tensor) -> TensorDict:
        """Set the caches of worlds at the start of a frame, and return the cells' observation [N, B] with them.

        Args:
            cache: bool [N, B, M], cut down to the storage by `amend_cache`; ignored for worlds in mid-frame.
        """
        self._latch(cache)
        return self.observe()

    def play(self, raw: Tensor) -> TensorDict:
        """One slot: serve it, move the worlds on, and return the cells' next observation with `reward`, [N, B].

        `latch` and `play` are `step` without TorchRL's bookkeeping. NaN in the allocation is not refused here, because
        the check would wait for the device: it makes rewards NaN.

        Args:
            raw: raw allocation [N, B, U, 2].
        """
        served, rewards = self._serve(raw)
        noise = draw_noise(self.scenario, self.batch_size[0], self.generator)
        self._world = advance(self.scenario, self._world, noise)
        return self._group(self._observation(served) | {"reward": self._group(rewards)})

    def observe(self) -> TensorDict:
        """The cells' current observation [N, B], as after a reset, without moving the worlds."""
        return self._group(self._observation(self.observation_spec["cells", "served"].zero()))

    def _fresh(self) -> tuple[State, State]:
        """New worlds, and what the environment keeps of each: cache, requests, rewards."""
        s, n = self.scenario, self.batch_size[0]
        world = initial_state(s, n, self.generator, self.held_out)
        models, device = (n, s.cells, s.models), self.device
        memory = {
            "cache": torch.zeros(models, dtype=torch.bool, device=device),
            # Before the first request all models have the same frequency.
            "frequencies": torch.full(models, 1 / s.models, device=device),
            "counts": torch.zeros(models, device=device),  # of this frame's requests
            "frame_reward": torch.zeros(n, s.cells, device=device),  # sum of this frame's slot rewards, less loading
        }
        if not s.one_crowd:
            memory["users"] = world["attached"].sum(-1).float()  # of a slot of the last frame, on average
            memory["users_so_far"] = torch.zeros(n, s.cells, device=device)  # sum over this frame's slots
        return world, memory

    def _seen_popularity(self) -> Tensor | None:
        """What the cacher sees of each demand, by row of the scenario's `demands`; None where it sees frequencies."""
        s = self.scenario
        if s.popularity_observation == "frequencies":
            return None
        return s.demands if s.popularity_observation == "probabilities" else torch.eye(len(s.demands)).to(self.device)

    def _in_frame(self, slot: int) -> Tensor:
        """Which worlds are in this slot of their frame, bool [N, 1]."""
        return (self._world["slot"] % self.scenario.slots_per_frame == slot).unsqueeze(-1)

    def _latch(self, asked: Tensor) -> None:
        s, memory, starts = self.scenario, self._memory, self._in_frame(0)
        cache = torch.where(starts.unsqueeze(-1), amend_cache(s, asked), memory["cache"])
        if s.switch_cost:
            loaded = (s.model_storage * (cache & ~memory["cache"])).sum(-1).float()
            # Charged once per frame; the sum is divided by K at the frame's end.
            memory = memory | {"frame_reward": memory["frame_reward"] - s.switch_cost * s.slots_per_frame * loaded}
        self._memory = memory | {"cache": cache}

    def _serve(self, raw: Tensor) -> tuple[TensorDict, dict[str, Tensor]]:
        """Amend the allocation, serve the slot and compute its rewards."""
        s, world, memory = self.scenario, self._world, self._memory
        cache, request, attached = memory["cache"], world["request"], world["attached"]
        ends = self._in_frame(s.slots_per_frame - 1)
        shares = amend_allocation(raw, hits(cache, request), attached)
        now = situation(world | {"cache": cache} | self._nearby())
        if s.one_crowd:
            del now["attached"]  # that everybody is
        steps = service.steps_of(s, request, shares[..., 1])
        served = serve(s, **now, bandwidth=shares[..., 0], steps=steps)
        del served["tv"]
        served["shares"] = shares
        if s.one_crowd:
            reward = cell_mean(served["utility"], None)
        else:
            present = attached.sum((-1, -2)).clamp_min(1).unsqueeze(-1)
            reward = served["utility"].sum(-1) * (s.cells / present)
        total = memory["frame_reward"] + reward
        frame = torch.where(ends, total / s.slots_per_frame, 0.0)
        self._memory = memory | {"frame_reward": total.masked_fill(ends, 0.0)}
        if s.popularity_observation == "frequencies":
            counts = memory["counts"].scatter_add(-1, request, attached.float())
            seen = counts / counts.sum(-1, keepdim=True).clamp_min(1.0)
            self._memory["frequencies"] = torch.where(ends.unsqueeze(-1), seen, memory["frequencies"])
            self._memory["counts"] = counts.masked_fill(ends.unsqueeze(-1), 0.0)
        if not s.one_crowd:
            users = memory["users_so_far"] + attached.sum(-1)
            self._memory["users"] = torch.where(ends, users / s.slots_per_frame, memory["users"])
            self._memory["users_so_far"] = users.masked_fill(ends, 0.0)
        return served, {"slot": reward.unsqueeze(-1), "frame": frame.unsqueeze(-1)}

    def _observation(self, served: TensorDict) -> dict[str, Any]:
        s, world, memory = self.scenario, self._world, self._memory
        if self._popularity_table is None:
            popularity = memory["frequencies"]
        else:
            popularity = torch.nn.functional.embedding(s.demand(world["popularity"]), self._popularity_table)
        users = memory["users"].unsqueeze(-1) if "users" in memory else torch.full_like(popularity[..., :1], s.users)
        return {
            "popularity": popularity,
            "popularity_state": world["popularity"],
            "load": users * self._load,
            **situation(world | {"cache": memory["cache"]} | self._nearby()),
            **self._ahead(),
            "served": served,
        }

    def _nearby(self) -> dict[str, Tensor]:
        """What other cells hold, [N, B, M], where that matters."""
        return {"nearby": held_elsewhere(self._memory["cache"])} if self.scenario.cooperates else {}

    def _ahead(self) -> dict[str, Tensor]:
        """What each model is asked for until the frame ends, [N, B, M], where that is recorded."""
        if not self.scenario.recorded_demand:
            return {}
        slot = self._world["slot"]
        time = self._world["origin"] + slot
        return {"ahead": self.scenario.requests.ahead(time, time - slot % self.scenario.slots_per_frame)}

    def _frame_start(self) -> Tensor:
        return self._in_frame(0)

    def _group(self, content: dict[str, Any]) -> TensorDict:
        return TensorDict(content, batch_size=(self.batch_size[0], self.scenario.cells), device=self.device)

    # -- exact resume

    def get_state(self) -> dict[str, Any]:
        """The whole state as plain tensors, random generator included; `set_state` restores it exactly."""
        return {
            "world": {key: value.contiguous() for key, value in self._world.items()},
            "memory": dict(self._memory),
            "generator": self.generator.get_state(),
            "recordings": self.scenario.recordings,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("recordings", {}) != self.scenario.recordings:
            raise UserError(f"env: {', '.join(self.scenario.recordings)} follows another recording than this state")
        self._world, self._memory = (
            {key: value.to(self.device) for key, value in state[part].items()} for part in ("world", "memory")
        )
        self.generator.set_state(state["generator"])


def load_per_user(scenario: Scenario) -> Tensor:
    """What one user takes of a cell, [3]: the mean model over the storage, the mean payload over what the bandwidth
    carries before the deadline at 1 bit/s/Hz, and the mean A3 over the steps that the budget buys.
    """
    s = scenario
    payload = sum(sum(bits.unbind(-1) if isinstance(bits, Tensor) else bits) for bits in (s.input_bits, s.output_bits))
    time = torch.as_tensor(payload / 2 / (s.cell_bandwidth * s.deadline), device=s.full_steps.device)
    return torch.stack((
        (s.model_storage.mean() / s.storage_capacity).float(),
        time.mean().float(),
        (s.full_steps * s.step_cost).mean() / s.step_budget,
    ))  # fmt: skip


def _where(asked: Tensor, new: State, old: State) -> State:
    """New values for the worlds that asked for them, bool [N, 1], old ones for the others."""
    return {key: torch.where(asked.reshape(-1, *[1] * (value.ndim - 1)), value, old[key]) for key, value in new.items()}
