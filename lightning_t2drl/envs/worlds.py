"""N worlds played slot by slot on plain tensors; what TorchRL, Gymnasium and PettingZoo show is made of this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.errors import UserError
from lightning_t2drl.system import amend_allocation, amend_cache, service
from lightning_t2drl.system.cells import held_elsewhere
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import hits, outcome, situation
from lightning_t2drl.system.world import State, advance, draw_noise, initial_state

Cells = dict[str, Any]  # the cells' observation, tensors [N, B, ...] by name; `served` and `reward` are dicts of them


class Worlds:
    """N worlds side by side, and what is kept of each for rewards and observations; see `EdgeAIGCEnv` for both.

    Args:
        scenario: the world's constants, on the device of `generator`.
        count: N.
        generator: draws everything.
        held_out: whether recorded demand is played from what is held out for evaluation.
    """

    def __init__(self, scenario: Scenario, count: int, generator: torch.Generator, held_out: bool = False) -> None:
        self.scenario, self.count, self.generator, self.held_out = scenario, count, generator, held_out
        self._compiled: Callable[..., tuple[State, State, State, State]] | None = None
        self.device = generator.device
        self._seen = self._seen_popularity()
        self._load = load_per_user(scenario)
        self._full_load = (scenario.users * self._load).expand(count, scenario.cells, 3)
        self.state, self.memory = self._fresh()
        self._slot: int | None = 0

    def reset(self, asked: Tensor | None = None) -> None:
        """Start new episodes in all worlds, or in those that ask for it, bool [N, 1]."""
        state, memory = self._fresh()
        if asked is not None:
            state, memory = _where(asked, state, self.state), _where(asked, memory, self.memory)
        self.state, self.memory = state, memory
        self._align()

    def compile(self, **options: Any) -> None:
        """Let `torch.compile` make one kernel of a slot when the next one is played."""
        raw = torch.zeros(self.count, self.scenario.cells, self.scenario.users, 2, device=self.device)
        uniform = draw_noise(self.scenario, self.count, torch.Generator(self.device))
        play_slot(self.scenario, self.state, self.memory, raw, uniform)  # what a scenario keeps is made before
        self._compiled = torch.compile(play_slot, **{"fullgraph": True, "dynamic": False} | options)

    def latch(self, asked: Tensor) -> None:
        """Set the caches of the worlds that start a frame, bool [N, B, M], cut down to the storage."""
        if self._nowhere(0):
            return
        s, memory = self.scenario, self.memory
        cache = torch.where(self.in_frame(0).unsqueeze(-1), amend_cache(s, asked), memory["cache"])
        if s.switch_cost:
            loaded = (s.model_storage * (cache & ~memory["cache"])).sum(-1).float()
            # Charged once per frame; the sum is divided by K at the frame's end.
            charge = s.switch_cost * s.slots_per_frame * loaded
            self.memory = memory | {"frame_reward": memory["frame_reward"] - charge}
        self.memory = self.memory | {"cache": cache}

    def play(self, raw: Tensor) -> Cells:
        """One slot with a raw allocation [N, B, U, 2]: serve it and move the worlds on; the next observation."""
        uniform = draw_noise(self.scenario, self.count, self.generator)
        now = (self.scenario, self.state, self.memory, raw, uniform)
        ends = not self._nowhere(self.scenario.slots_per_frame - 1)
        if self._slot is not None:
            self._slot += 1
        if self._compiled is not None:
            following = self._compiled(*now)
        else:
            changes = self._slot is None or self._slot % self.scenario.popularity_change_every == 0
            following = play_slot(*now, ends, changes)
        self.state, self.memory, served, reward = following
        return self.observe() | {"served": served, "reward": reward}

    def observe(self) -> Cells:
        """The cells' observation, without what was served."""
        s, state, memory = self.scenario, self.state, self.memory
        if self._seen is None:
            popularity = memory["frequencies"]
        else:
            popularity = torch.nn.functional.embedding(s.demand(state["popularity"]), self._seen)
        return {
            "popularity": popularity,
            "popularity_state": state["popularity"],
            "load": self._full_load if s.one_crowd else memory["users"].unsqueeze(-1) * self._load,
            **situation_of(s, state, memory),
            **self._ahead(),
        }

    def in_frame(self, slot: int) -> Tensor:
        """Which worlds are in this slot of their frame, bool [N, 1]."""
        return (self.state["slot"] % self.scenario.slots_per_frame == slot).unsqueeze(-1)

    def _nowhere(self, slot: int) -> bool:
        """Whether it is known that no world is in this slot of its frame."""
        return self._slot is not None and self._slot % self.scenario.slots_per_frame != slot

    def _align(self) -> None:
        """Note the slot that all worlds are in, so that none has to be asked; None where they differ."""
        slot = self.state["slot"]
        self._slot = int(slot[0]) if bool((slot == slot[0]).all()) else None

    def _fresh(self) -> tuple[State, State]:
        """New worlds, and what is kept of each: cache, requests, rewards."""
        s, n = self.scenario, self.count
        state = initial_state(s, n, self.generator, self.held_out)
        models, device = (n, s.cells, s.models), self.device
        memory = {
            "cache": torch.zeros(models, dtype=torch.bool, device=device),
            # Before the first request all models have the same frequency.
            "frequencies": torch.full(models, 1 / s.models, device=device),
            "counts": torch.zeros(models, device=device),  # of this frame's requests
            "frame_reward": torch.zeros(n, s.cells, device=device),  # sum of this frame's slot rewards, less loading
        }
        if not s.one_crowd:
            memory["users"] = state["attached"].sum(-1).float()  # of a slot of the last frame, on average
            memory["users_so_far"] = torch.zeros(n, s.cells, device=device)  # sum over this frame's slots
        return state, memory

    def _seen_popularity(self) -> Tensor | None:
        """What the cacher sees of each demand, by row of the scenario's `demands`; None where it sees frequencies."""
        s = self.scenario
        if s.popularity_observation == "frequencies":
            return None
        return s.demands if s.popularity_observation == "probabilities" else torch.eye(len(s.demands)).to(self.device)

    def _ahead(self) -> dict[str, Tensor]:
        """What each model is asked for until the frame ends, [N, B, M], where that is recorded."""
        if not self.scenario.recorded_demand:
            return {}
        slot = self.state["slot"]
        time = self.state["origin"] + slot
        return {"ahead": self.scenario.requests.ahead(time, time - slot % self.scenario.slots_per_frame)}

    # -- exact resume

    def get_state(self) -> dict[str, Any]:
        """The whole state as plain tensors, random generator included; `set_state` restores it exactly."""
        return {
            "world": {key: value.clone() for key, value in self.state.items()},
            "memory": dict(self.memory),
            "generator": self.generator.get_state(),
            "recordings": self.scenario.recordings,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("recordings", {}) != self.scenario.recordings:
            raise UserError(f"env: {', '.join(self.scenario.recordings)} follows another recording than this state")
        self.state, self.memory = (
            {key: value.to(self.device) for key, value in state[part].items()} for part in ("world", "memory")
        )
        self.generator.set_state(state["generator"])
        self._align()


def situation_of(scenario: Scenario, state: State, memory: State) -> dict[str, Tensor]:
    """What `serve` takes of each cell, with its cache and, where that matters, what other cells hold."""
    nearby = {"nearby": held_elsewhere(memory["cache"])} if scenario.cooperates else {}
    return situation(state | {"cache": memory["cache"]} | nearby)


def play_slot(
    scenario: Scenario,
    state: State,
    memory: State,
    raw: Tensor,
    uniform: Tensor,
    ends: bool = True,
    changes: bool = True,
) -> tuple[State, State, State, State]:
    """One slot as a function of tensors: amend the allocation, serve it, pay for it and move the worlds on.

    Args:
        scenario: the world's constants.
        state, memory: the worlds, and what is kept of each.
        raw: raw allocation [N, B, U, 2].
        uniform: what `draw_noise` drew for the next slot.
        ends: whether a frame may end with this slot in some world; False saves asking.
        changes: the same of popularity in the next slot.

    Returns:
        The next state and memory, and by user and cell what was served and earned.
    """
    s, request, attached = scenario, state["request"], state["attached"]
    now = situation_of(s, state, memory)
    shares = amend_allocation(raw, hits(now["cache"], request), attached)
    if s.one_crowd:
        del now["attached"]  # that everybody is
    bandwidth, steps = shares.unbind(-1)
    served = outcome(s, **now, bandwidth=bandwidth, steps=service.steps_of(s, request, steps))
    served["shares"] = shares
    if s.one_crowd:
        reward = served["utility"].mean(-1)
    else:
        present = attached.sum((-1, -2)).clamp_min(1).unsqueeze(-1)
        reward = served["utility"].sum(-1) * (s.cells / present)
    memory, frame = _remember(s, state, memory, reward, ends)
    rewards = {"slot": reward.unsqueeze(-1), "frame": frame.unsqueeze(-1)}
    return advance(s, state, uniform, changes), memory, served, rewards


def _remember(scenario: Scenario, state: State, memory: State, reward: Tensor, ends: bool) -> tuple[State, Tensor]:
    """Add a slot to what is kept of its frame; also the frame reward [N, B], 0 but where the frame ends."""
    s, attached = scenario, state["attached"]
    sums = {"frame_reward": memory["frame_reward"] + reward}
    if s.popularity_observation == "frequencies":
        sums["counts"] = memory["counts"].scatter_add(-1, state["request"], attached.float())
    if not s.one_crowd:
        sums["users_so_far"] = memory["users_so_far"] + attached.sum(-1)
    if not ends:
        return memory | sums, torch.zeros_like(reward)
    last = (state["slot"] % s.slots_per_frame == s.slots_per_frame - 1).unsqueeze(-1)
    means = {}
    if "counts" in sums:
        seen = sums["counts"] / sums["counts"].sum(-1, keepdim=True).clamp_min(1.0)
        means["frequencies"] = torch.where(last.unsqueeze(-1), seen, memory["frequencies"])
    if "users_so_far" in sums:
        means["users"] = torch.where(last, sums["users_so_far"] / s.slots_per_frame, memory["users"])
    frame = torch.where(last, sums["frame_reward"] / s.slots_per_frame, 0.0)
    emptied = {key: value.masked_fill(last.view(-1, *[1] * (value.ndim - 1)), 0.0) for key, value in sums.items()}
    return memory | emptied | means, frame


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
