"""The keys of `configs/env/*.yaml`, their types and defaults, and which go with which. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_t2drl.errors import UserError
from lightning_t2drl.system.catalogue import refuse_both

OBSERVATIONS = ("state", "probabilities", "frequencies")
PARTS = {  # groups of choices within `env`, and the class of each that is taken where nothing is said
    "channel": "lightning_t2drl.system.channels.macro.MacroChannel",
    "fading": "lightning_t2drl.system.fadings.rician.RicianFading",
    "demand": "lightning_t2drl.system.demands.markov.MarkovDemand",
    "mobility": "lightning_t2drl.system.mobilities.gauss_markov.GaussMarkovMobility",
}
READ_BY = {  # keys of `env` that of the shipped classes only a group's first one reads
    "rician_factor_db": "fading",
    "mobility_memory": "mobility",
    "mean_speed": "mobility",
    "speed_deviation": "mobility",
    "zipf_skewness": "demand",
    "popularity_transition": "demand",
    "popularity_change_every": "demand",
    "popularity_scope": "demand",
    "popularity_observation": "demand",
    "ranking": "demand",
    "ranking_seed": "demand",
}


@dataclass
class ServiceConfig:
    """Fitted quality and delay curves; every key is one number for all models or a list of one per model."""

    floor_steps: Any = 60.0
    worst_metric: Any = 110.0
    full_steps: Any = 170.0
    best_metric: Any = 28.0
    seconds_per_step: Any = 0.18
    base_seconds: Any = 5.74


@dataclass
class ScenarioConfig:
    """The keys of `configs/env/*.yaml` that describe the world, in the units their names carry."""

    name: str = "paper"
    frames_per_episode: int = 10
    slots_per_frame: int = 10
    cells: int = 1
    site_distance: float = 400.0
    sites_m: list[list[float]] | None = None
    reuse: int = 1
    hysteresis_db: float = 3.0
    handover_delay: float = 2.0
    edge_link_mbps: float | None = None
    users: int = 10
    active_users: list[int] | None = None
    active_users_spread: str = "linear"
    arrival_rate: float = 0.0
    departure_rate: float = 0.0
    activity: float = 1.0
    storage_capacity_gb: float = 20.0
    model_storage_gb: list[float] = field(default_factory=lambda: [4.3, 6.9, 2.1, 5.2, 3.4, 7.7, 2.6, 4.9, 3.1, 6.0])
    zipf_skewness: list[float] = field(default_factory=lambda: [0.6, 1.0, 1.4])
    popularity_transition: list[list[float]] = field(
        default_factory=lambda: [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    )
    popularity_change_every: int | None = None
    popularity_scope: str = "shared"
    ranking: str = "fixed"
    ranking_seed: int = 0
    popularity_observation: str = "state"
    input_mb: list[float] = field(default_factory=lambda: [5.0, 10.0])
    output_mb: list[float] = field(default_factory=lambda: [5.0, 10.0])
    bandwidth_mhz: float = 20.0
    user_power_dbm: float = 23.0
    station_power_dbm: float = 43.0
    noise_density_dbm_hz: float = -174.0
    radius: float = 250.0
    min_distance: float = 10.0
    rician_factor_db: float = 6.0
    shadowing_db: float = 0.0
    shadowing_memory: float = 0.9
    mobility_memory: float = 0.8
    mean_speed: float = 0.0
    speed_deviation: float = 1.5
    slot_duration: float | None = None
    backhaul_mbps: float = 50.0
    step_budget: float = 1000.0
    channel: Any = field(default_factory=lambda: {"_target_": PARTS["channel"]})
    demand: Any = field(default_factory=lambda: {"_target_": PARTS["demand"]})
    fading: Any = field(default_factory=lambda: {"_target_": PARTS["fading"]})
    mobility: Any = field(default_factory=lambda: {"_target_": PARTS["mobility"]})
    catalogue: Any = None
    service: ServiceConfig = field(default_factory=ServiceConfig)
    alpha: float = 0.5
    deadline: float = 60.0
    deadline_penalty: float = 0.5
    switch_cost_per_gb: float = 0.0


def refuse_idle(env: Mapping[str, Any], said: Iterable[str]) -> None:
    """Refuse given keys, without their `env.`, that nothing reads beside what is chosen in `env`."""
    said = list(said)
    refuse_both(env.get("catalogue"), said)
    for key in said:
        group = READ_BY.get(key)
        target = str((env.get(group) or {}).get("_target_", "")) if group else ""
        if group and target.startswith("lightning_t2drl.") and target != PARTS[group]:
            raise UserError(f"env.{key}: counts for nothing beside env/{group}={target.split('.')[-2]}")
