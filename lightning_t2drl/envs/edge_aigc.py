"""The world as a TorchRL environment: one environment, two timescales, cells as agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from lightning_t2drl.envs.worlds import Worlds
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario

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
        compile: whether to `compile` (taken by TorchRL).
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
        if not isinstance(scenario, Scenario):
            raise UserError(f"scenario: {scenario!r} is no Scenario; load_scenario makes one by its name")
        if isinstance(num_envs, bool) or not hasattr(num_envs, "__index__") or num_envs < 1:
            raise UserError(f"num_envs: {num_envs!r} is not a whole number of at least 1")
        super().__init__(device=torch.device(device), batch_size=torch.Size([int(num_envs)]))
        self.scenario = scenario.to(device)
        self.held_out = held_out
        self.generator = torch.Generator(device=device)
        self._make_specs()
        self._set_seed(seed)
        self.worlds = Worlds(self.scenario, num_envs, self.generator, held_out)
        self._cells = torch.Size((num_envs, self.scenario.cells))
        self._nothing = self.observation_spec["cells", "served"].zero()  # what is served before a slot

    def compile(self, **options: Any) -> EdgeAIGCEnv:
        """Let `torch.compile` make one kernel of a slot, which takes seconds when the next one is played and pays in
        long runs of few worlds. `EdgeAIGCEnv(..., compile=True)` does it, too.

        Args:
            **options: of `torch.compile`.
        """
        self.worlds.compile(**options)
        return self

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
        self.worlds.reset(None if tensordict is None else tensordict.get("_reset", None))
        out = {"cells": self.observe(), "frame_start": self.worlds.in_frame(0)}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["cells", "action"]
        if not bool(action["allocation"].isfinite().all()):
            raise NonFiniteError("the allocation handed to the environment holds NaN or infinity")
        self.worlds.latch(action["cache"])
        cells = self.play(action["allocation"])
        truncated = (self.worlds.state["slot"] >= self.scenario.slots_per_episode).unsqueeze(-1)
        flags = {"done": truncated, "truncated": truncated, "terminated": torch.zeros_like(truncated)}
        out = {"cells": cells, "frame_start": self.worlds.in_frame(0), **flags}
        return TensorDict(out, batch_size=self.batch_size, device=self.device)

    # -- frames and slots

    def latch(self, cache: Tensor) -> TensorDict:
        """Set the caches of worlds at the start of a frame, and return the cells' observation [N, B] with them.

        Args:
            cache: bool [N, B, M], cut down to the storage by `amend_cache`; ignored for worlds in mid-frame.
        """
        self.worlds.latch(cache)
        return self.observe()

    def play(self, raw: Tensor) -> TensorDict:
        """One slot: serve it, move the worlds on, and return the cells' next observation with `reward`, [N, B].

        `latch` and `play` are `step` without TorchRL's bookkeeping. NaN in the allocation is not refused here, because
        the check would wait for the device: it makes rewards NaN.

        Args:
            raw: raw allocation [N, B, U, 2].
        """
        return self._group(self.worlds.play(raw))

    def observe(self) -> TensorDict:
        """The cells' current observation [N, B], as after a reset, without moving the worlds."""
        return self._group(self.worlds.observe() | {"served": self._nothing.copy()})

    def _group(self, content: dict[str, Any]) -> TensorDict:
        return TensorDict(content, batch_size=self._cells, device=self.device)

    # -- exact resume

    def get_state(self) -> dict[str, Any]:
        """The whole state as plain tensors, random generator included; `set_state` restores it exactly."""
        return self.worlds.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.worlds.set_state(state)
