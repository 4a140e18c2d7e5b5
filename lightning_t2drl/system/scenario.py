"""The world's constants in SI units."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scenario:
    """A validated world in SI units (bit, bit/s, Hz, W, m, s). Make one with `load_scenario` or `build_scenario`.

    Symbols of the paper stand in brackets. Tensors live on the CPU until `to` moves them.
    """

    name: str
    frames_per_episode: int  # T
    slots_per_frame: int  # K
    cells: int  # B
    users: int  # U
    models: int  # M
    popularity_states: int  # J
    storage_capacity: float  # C, bit
    model_storage: Tensor  # c_m [M], bit, float64 so that sums compare exactly with the capacity
    zipf_skewness: Tensor  # gamma_j [J]
    popularity_transition: Tensor  # P [J, J], rows sum to 1
    popularity_change_every: int  # slots between two steps of the popularity chain
    request_probability: Tensor  # p_j(m) [J, M]
    popularity_observation: str  # what the cacher sees of the demand: "state" or "frequencies"
    input_bits: tuple[float, float]  # range of d_in, bit
    output_bits: tuple[float, float]  # range of d_out, bit
    bandwidth: float  # W, Hz, uplink and downlink alike
    user_power: float  # p_user, W
    station_power: float  # p_bs, W
    noise_density: float  # N0, W/Hz
    radius: float  # m
    min_distance: float  # m
    rician_factor: float  # K_R, linear
    mobility_memory: float  # a
    mean_speed: float  # m/s
    speed_deviation: float  # s, m/s
    slot_duration: float  # s, how far users move between two slots
    backhaul_rate: float  # R_bh, bit/s
    step_budget: float  # L, denoising steps per slot
    floor_steps: Tensor  # A1 [M]
    worst_metric: Tensor  # A2 [M]
    full_steps: Tensor  # A3 [M]
    best_metric: Tensor  # A4 [M]
    seconds_per_step: Tensor  # B1 [M]
    base_seconds: Tensor  # B2 [M], s
    alpha: float
    deadline: float  # tau, s
    deadline_penalty: float  # chi
    switch_cost: float  # utility per bit newly loaded

    @property
    def slots_per_episode(self) -> int:
        return self.frames_per_episode * self.slots_per_frame

    @property
    def popularity_width(self) -> int:
        """Width of what the cacher sees of the demand."""
        return self.popularity_states if self.popularity_observation == "state" else self.models

    @cached_property
    def request_cdf(self) -> Tensor:
        """Cumulative request probabilities [J, M]."""
        return _cumulative(self.request_probability)

    @cached_property
    def transition_cdf(self) -> Tensor:
        """Cumulative transition probabilities of the popularity chain [J, J]."""
        return _cumulative(self.popularity_transition)

    @cached_property
    def payload_ranges(self) -> tuple[Tensor, Tensor]:
        """Lower end and width of the ranges of d_in and d_out, bit [2, 1] each."""
        low, high = torch.tensor([self.input_bits, self.output_bits], device=self.model_storage.device).unbind(-1)
        return low.unsqueeze(-1), (high - low).unsqueeze(-1)

    @cached_property
    def service_table(self) -> Tensor:
        """A1, A2, A3, A4, B1, B2 side by side [M, 6], so that one gather fetches a model's profile."""
        curves = (self.floor_steps, self.worst_metric, self.full_steps, self.best_metric)
        return torch.stack((*curves, self.seconds_per_step, self.base_seconds), -1)

    def to(self, device: torch.device | str) -> Scenario:
        """The same scenario with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: what a checkpoint and a comparison hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            k: v.tolist() if isinstance(v, Tensor) else list(v) if isinstance(v, tuple) else v
            for k, v in values.items()
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.users, self.models, self.alpha, self.storage_capacity))


def _cumulative(probability: Tensor) -> Tensor:
    cumulative = probability.cumsum(-1)
    return cumulative / cumulative[..., -1:]  # rounding must not leave a gap below 1
