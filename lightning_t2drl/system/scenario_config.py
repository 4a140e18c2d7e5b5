"""Scenarios from the keys of `configs/env/*.yaml`: everyday units there, checked once, SI units here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from lightning_t2drl.checks import one_of
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import class_of, config_of, typed
from lightning_t2drl.system.catalogue import BITS_PER_GB, BITS_PER_MB, CONFIG_ROOT, read_catalogue
from lightning_t2drl.system.cells import reuse_colours, station_sites
from lightning_t2drl.system.keys import OBSERVATIONS, PARTS, ScenarioConfig, ServiceConfig, refuse_idle
from lightning_t2drl.system.models import catalogue_fields, models_of
from lightning_t2drl.system.scenario import Scenario

LARGEST_SI = 1e30  # of any override in SI units; what is allowed is checked by config key


# Scenario field -> (config key, factor): lets `load_scenario` take SI overrides by field name.
_SI_OVERRIDES: dict[str, tuple[str, float]] = {
    "storage_capacity": ("storage_capacity_gb", 1 / BITS_PER_GB),
    "model_storage": ("model_storage_gb", 1 / BITS_PER_GB),
    "input_bits": ("input_mb", 1 / BITS_PER_MB),
    "output_bits": ("output_mb", 1 / BITS_PER_MB),
    "bandwidth": ("bandwidth_mhz", 1e-6),
    "backhaul_rate": ("backhaul_mbps", 1e-6),
    "edge_link_rate": ("edge_link_mbps", 1e-6),
    "switch_cost": ("switch_cost_per_gb", BITS_PER_GB),
}
_POWER_OVERRIDES = {
    "user_power": "user_power_dbm",
    "station_power": "station_power_dbm",
    "noise_density": "noise_density_dbm_hz",
    "rician_factor": "rician_factor_db",
}


def load_scenario(name: str = "paper", **overrides: Any) -> Scenario:
    """The scenario that `env=NAME` describes.

    Args:
        name: a file of `configs/env/` without its ending (`paper`, `drift`, ...), or the path of a file of one's own,
            which ends in `.yaml`.
        **overrides: config keys in their units (`bandwidth_mhz=10`) or fields of `Scenario` in SI units
            (`bandwidth=10e6`); keys of `service` go by their own names (`full_steps=150`); `channel`, `demand`,
            `fading` and `mobility` by the name of a choice, or as a dict with the class as `_target_` and its keys.

    Raises:
        UserError: there is no such scenario or key, or the value is not possible.
    """
    content = _load_env_file(_env_file(str(name)))
    values: dict[str, Any] = {str(key): value for key, value in content.items() if key != "num_envs"}
    said: list[str] = []
    for name_given, given in overrides.items():
        key, value = _in_config_units(name_given, given.tolist() if isinstance(given, Tensor) else given)
        if key in ServiceConfig.__dataclass_fields__:
            key, value = "service", {key: value}
        if key in PARTS and isinstance(value, str):
            value = _part_file(key, value)
        elif key in PARTS and isinstance(value, Mapping) and "_target_" in value:
            values.pop(key, None)
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping) and key != "catalogue"
        values[key] = {**values[key], **value} if both else value
        said.append(key)
    values["catalogue"] = read_catalogue(values.get("catalogue"))
    refuse_idle(values, said)
    return build_scenario(typed(ScenarioConfig, values, "env"))


def _in_config_units(key: str, value: Any) -> tuple[str, Any]:
    """An override by `Scenario` field in SI units as the config key and unit behind it; others pass unchanged."""
    if key == "sites":
        return "sites_m", value
    if key in _SI_OVERRIDES and value is None:
        return _SI_OVERRIDES[key][0], None
    if key in _SI_OVERRIDES:
        many = isinstance(value, (list, tuple))
        for number in value if many else [value]:
            _Check.number(key, number, 0.0, LARGEST_SI)
        key, factor = _SI_OVERRIDES[key]
        return key, [v * factor for v in value] if many else value * factor
    if key in _POWER_OVERRIDES:
        _Check.number(key, value, 0.0, LARGEST_SI, exclusive=True)
        return _POWER_OVERRIDES[key], 10 * math.log10(value) + (0.0 if key == "rician_factor" else 30.0)
    return key, value


def _env_file(name: str, beside: Path | None = None) -> Path:
    """The file of a scenario: at a path, beside a file that names it, or among those that come with the package."""
    shipped = CONFIG_ROOT / "env"
    if name.endswith((".yaml", ".yml")):
        candidates = [Path(name)]
    else:
        candidates = [*([] if beside is None else [beside.with_name(f"{name}.yaml")]), shipped / f"{name}.yaml"]
    for path in candidates:
        if path.is_file() and path != beside:
            return path
    known = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml") if not p.stem.startswith("_")))
    raise UserError(f"env={name}: no such scenario; there are {known}, and files of your own as PATH.yaml")


def _load_env_file(path: Path) -> dict[str, Any]:
    """An env file on top of those that its `defaults:` name, as Hydra would compose it."""
    chosen: dict[str, dict[str, Any]] = {}
    content = _own_and_bases(path, chosen)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(chosen, content), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"env={path}: {error.full_key or ''}: {str(error.msg or error).splitlines()[0]}") from None
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _own_and_bases(path: Path, chosen: dict[str, dict[str, Any]], above: tuple[Path, ...] = ()) -> DictConfig:
    """Keys of an env file and of those that its `defaults:` name; what they choose of `PARTS` goes into `chosen`."""
    if path in above:
        raise UserError(f"env={path}: its defaults lead back to itself")
    content = _yaml(f"env={path}", path)
    given = content.pop("defaults", ListConfig([]))
    if not isinstance(given, ListConfig):
        raise UserError(f"env={path}: its defaults are no list, such as [paper, _self_]")
    defaults = list(given)
    bases = [str(base) for base in defaults if base != "_self_" and not isinstance(base, Mapping)]
    layers = [_own_and_bases(_env_file(base, path), chosen, (*above, path)) for base in bases]
    for entry in (entry for entry in defaults if isinstance(entry, Mapping)):  # such as {override channel: umi}
        for group, choice in entry.items():
            name = str(group).removeprefix("override ").rpartition("/")[2]
            if name not in PARTS:
                raise UserError(f"env={path}: its defaults choose of {group}; groups are {', '.join(PARTS)}")
            chosen[name] = _part_file(name, str(choice), path)
    merged = OmegaConf.merge(*layers, content)
    assert isinstance(merged, DictConfig)
    return merged


def _yaml(label: str, path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{label}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{label}: holds no keys")
    return content


def _part_file(group: str, choice: str, beside: Path | None = None) -> dict[str, Any]:
    """The keys of a choice of `PARTS`: of a path, beside an env file that names it, or as shipped."""
    shipped = CONFIG_ROOT / "env" / group
    candidates = [Path(choice)] if choice.endswith((".yaml", ".yml")) else [shipped / f"{choice}.yaml"]
    if beside is not None:
        candidates.insert(0, beside.parent / group / f"{choice}.yaml")
    for path in candidates:
        if path.is_file():
            return {str(key): value for key, value in _yaml(f"env/{group}={choice}", path).items()}
    known = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml") if not p.stem.startswith("_")))
    raise UserError(f"env.{group}: {choice!r} is no choice; there are {known}, and files of your own as PATH.yaml")


def build_scenario(config: ScenarioConfig) -> Scenario:
    """Check a scenario's config and convert it to SI units.

    Raises:
        UserError: one line naming the key (`env.KEY`) and what would be right.
    """
    check = _Check(config)
    check.integers(
        frames_per_episode=(1, 10**6),
        slots_per_frame=(1, 10**6),
        cells=(1, 1000),
        reuse=(1, 1000),
        users=(1, 10**5),
        ranking_seed=(0, 2**63 - 1),
    )
    catalogue = None if config.catalogue is None else models_of(config.catalogue)
    if catalogue is None:
        storage = check.vector("model_storage_gb", minimum=0.0, exclusive=True)
    else:
        storage = [float(model.storage_gb or 0.0) for model in catalogue]
    check.scalar("storage_capacity_gb", minimum=0.0, exclusive=True)
    if min(storage) > config.storage_capacity_gb:
        what = "env.model_storage_gb" if catalogue is None else "env.catalogue"
        raise UserError(
            f"env.storage_capacity_gb: {config.storage_capacity_gb} holds no model; the smallest of {what} takes "
            f"{min(storage)}"
        )
    skewness = check.vector("zipf_skewness", minimum=0.0, maximum=50.0)
    transition = check.transition_matrix("popularity_transition", len(skewness))
    if config.ranking not in ("fixed", "shuffled"):
        raise UserError(f"env.ranking: {config.ranking!r} is neither fixed nor shuffled")
    one_of("env", config, popularity_observation=OBSERVATIONS, popularity_scope=("shared", "per_cell"))
    one_of("env", config, active_users_spread=("linear", "log"))
    change_every = config.slots_per_frame if config.popularity_change_every is None else config.popularity_change_every
    if change_every < 1:
        raise UserError(f"env.popularity_change_every: {change_every} is below 1 slot")
    for key in ("input_mb", "output_mb"):
        check.interval(key)
    for key in ("bandwidth_mhz", "site_distance", "radius", "min_distance", "backhaul_mbps", "step_budget", "deadline"):
        check.scalar(key, minimum=1e-6, maximum=1e12)  # less would leave what float32 can hold
    for key in ("user_power_dbm", "station_power_dbm", "rician_factor_db"):
        check.scalar(key, minimum=-300.0, maximum=150.0)
    check.scalar("noise_density_dbm_hz", minimum=-300.0, maximum=0.0)
    if config.edge_link_mbps is not None:
        check.scalar("edge_link_mbps", minimum=0.0, exclusive=True)
    check.scalar("hysteresis_db", minimum=0.0, maximum=100.0)
    check.scalar("shadowing_db", minimum=0.0, maximum=30.0)  # gains of far more would leave what float32 can hold
    check.scalar("handover_delay", minimum=0.0, maximum=1e9)
    for key in ("mean_speed", "speed_deviation"):
        check.scalar(key, minimum=0.0, maximum=1e6)
    for key in ("alpha", "mobility_memory", "shadowing_memory", "arrival_rate", "departure_rate"):
        check.scalar(key, minimum=0.0, maximum=1.0)
    check.scalar("activity", minimum=0.0, exclusive=True, maximum=1.0)
    if config.arrival_rate and not config.departure_rate and config.active_users is None:
        raise UserError("env.arrival_rate: everybody is present; set env.active_users or env.departure_rate as well")
    for key in ("deadline_penalty", "switch_cost_per_gb"):
        check.scalar(key, minimum=0.0, maximum=1e6)
    if config.min_distance >= config.radius:
        raise UserError(f"env.min_distance: {config.min_distance} m is not below env.radius {config.radius} m")
    slot_duration = config.deadline if config.slot_duration is None else config.slot_duration
    if not (0 <= slot_duration <= 1e9):
        raise UserError(f"env.slot_duration: {slot_duration} s is not a finite time of 0 or more")
    services = _plain_lists(check, storage) if catalogue is None else catalogue_fields(catalogue, config)
    sites = check.sites()
    own_rankings = config.popularity_scope == "per_cell" and config.ranking == "shuffled"

    scenario = Scenario(
        name=config.name,
        frames_per_episode=config.frames_per_episode,
        slots_per_frame=config.slots_per_frame,
        cells=config.cells,
        users=config.users,
        models=len(storage),
        popularity_states=len(skewness),
        storage_capacity=config.storage_capacity_gb * BITS_PER_GB,
        zipf_skewness=torch.tensor(skewness),
        popularity_transition=torch.tensor(transition),
        popularity_change_every=change_every,
        popularity_scope=config.popularity_scope,
        request_probability=_request_probability(
            skewness, len(storage), config.ranking, config.ranking_seed, config.cells if own_rankings else None
        ),
        popularity_observation=config.popularity_observation,
        bandwidth=config.bandwidth_mhz * 1e6,
        reuse=config.reuse,
        colours=reuse_colours(config.cells, config.reuse, spiral=sites is None),
        user_power=_watts(config.user_power_dbm),
        station_power=_watts(config.station_power_dbm),
        noise_density=_watts(config.noise_density_dbm_hz),
        site_distance=config.site_distance,
        sites=station_sites(config.cells, config.site_distance) if sites is None else torch.tensor(sites),
        radius=config.radius,
        min_distance=config.min_distance,
        rician_factor=10 ** (config.rician_factor_db / 10),
        mobility_memory=config.mobility_memory,
        mean_speed=config.mean_speed,
        speed_deviation=config.speed_deviation,
        slot_duration=slot_duration,
        active_users=check.active_users(),
        active_users_spread=config.active_users_spread,
        arrival_rate=config.arrival_rate,
        departure_rate=config.departure_rate,
        shadowing_db=config.shadowing_db,
        shadowing_memory=config.shadowing_memory,
        hysteresis_db=config.hysteresis_db,
        handover_delay=config.handover_delay,
        backhaul_rate=config.backhaul_mbps * 1e6,
        edge_link_rate=None if config.edge_link_mbps is None else config.edge_link_mbps * 1e6,
        step_budget=config.step_budget,
        switch_cost=config.switch_cost_per_gb / BITS_PER_GB,
        activity=config.activity,
        parts={name: check.part(name) for name in PARTS},
        **services,
    )
    return _with_parts(scenario)


def _with_parts(scenario: Scenario) -> Scenario:
    """Make what `PARTS` name, so that what cannot be is refused here.

    Recorded demand replaces the popularity chain: there is one state, with the frequencies of what training sees, and
    cachers see the last frame's.
    """
    for name in ("channel", "fading", "mobility", "requests"):
        getattr(scenario, name)
    slots, episode = scenario.recorded_slots, scenario.slots_per_episode
    if slots is None:
        return scenario
    if slots < episode:
        raise UserError(f"env.frames_per_episode: an episode takes {episode} slots, what is recorded lasts {slots}")
    _ = scenario.training_starts, scenario.held_out_starts
    if (frequencies := scenario.requests.frequencies) is None:
        return scenario
    if scenario.activity < 1:
        raise UserError(f"env.activity: {scenario.activity}; a recording says itself who asks, leave it at 1")
    return replace(
        scenario,
        popularity_states=1,
        zipf_skewness=torch.zeros(1),
        popularity_transition=torch.ones(1, 1),
        popularity_scope="shared",
        popularity_observation="frequencies",
        request_probability=frequencies,
    )


def _plain_lists(check: _Check, storage: list[float]) -> dict[str, Any]:
    """The fields of `Scenario` that a catalogue would set, of models of one kind by the env's own keys."""
    config, models = check.config, len(storage)
    return {
        "model_storage": torch.tensor(storage, dtype=torch.float64) * BITS_PER_GB,
        "knots": None,
        "step_cost": 1.0,
        "input_bits": (config.input_mb[0] * BITS_PER_MB, config.input_mb[1] * BITS_PER_MB),
        "output_bits": (config.output_mb[0] * BITS_PER_MB, config.output_mb[1] * BITS_PER_MB),
        "alpha": config.alpha,
        "deadline": config.deadline,
        "deadline_penalty": config.deadline_penalty,
        "model_names": tuple(str(model) for model in range(models)),
        "services": ("image",) * models,
        "metrics": ("metric",) * models,
        **check.service(models),
    }


def _watts(dbm: float) -> float:
    return 10 ** (dbm / 10) / 1000


def _request_probability(skewness: list[float], models: int, ranking: str, seed: int, cells: int | None) -> Tensor:
    """p_j(m) = rank_j(m)^(-gamma_j) / sum_n rank_j(n)^(-gamma_j), [J, M], or [cells, J, M] with rankings per cell.

    The first cells' rankings are the same however many cells there are.
    """
    generator = torch.Generator().manual_seed(seed)
    in_order = torch.arange(models)
    rows = len(skewness) * (cells or 1)
    ranks = torch.stack(
        [torch.randperm(models, generator=generator) if ranking == "shuffled" else in_order for _ in range(rows)]
    ).view(-1, len(skewness), models)
    weight = (ranks + 1).double() ** -torch.tensor(skewness, dtype=torch.float64)[:, None]
    probability = (weight / weight.sum(-1, keepdim=True)).float()
    return probability[0] if cells is None else probability


class _Check:
    """Range checks that name the key; each raises `UserError` with one line."""

    def __init__(self, config: ScenarioConfig) -> None:
        self.config = config

    def integers(self, **ranges: tuple[int, int]) -> None:
        for key, (low, high) in ranges.items():
            value = getattr(self.config, key)
            if not low <= value <= high:
                limits = f"only {low} is supported" if low == high else f"must be from {low} to {high}"
                raise UserError(f"env.{key}: {value}; {limits}")

    def scalar(self, key: str, minimum: float, maximum: float = 1e12, exclusive: bool = False) -> None:
        self.number(key, getattr(self.config, key), minimum, maximum, exclusive)

    def vector(self, key: str, minimum: float, maximum: float = 1e12, exclusive: bool = False) -> list[float]:
        values = list(getattr(self.config, key))
        if not values:
            raise UserError(f"env.{key}: the list is empty; it needs at least one number")
        for value in values:
            self.number(key, value, minimum, maximum, exclusive)
        return [float(v) for v in values]

    def interval(self, key: str) -> None:
        values = self.vector(key, minimum=0.0, exclusive=True)
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(f"env.{key}: {values} is not a range [low, high]")

    def sites(self) -> list[list[float]] | None:
        if (given := self.config.sites_m) is None:
            return None
        rows = [list(row) for row in given]
        if len(rows) != self.config.cells or any(len(row) != 2 for row in rows):
            raise UserError(
                f"env.sites_m: needs a pair [x, y] for each of the {self.config.cells} stations (env.cells)"
            )
        for value in (value for row in rows for value in row):
            self.number("sites_m", value, -1e9, 1e9)
        return rows

    def active_users(self) -> tuple[int, int] | None:
        if (given := self.config.active_users) is None:
            return None
        users = self.config.users
        if len(given) != 2 or not 1 <= given[0] <= given[1] <= users:
            raise UserError(f"env.active_users: {list(given)} is not a range [low, high] from 1 to env.users {users}")
        return given[0], given[1]

    def transition_matrix(self, key: str, states: int) -> list[list[float]]:
        rows = [list(row) for row in getattr(self.config, key)]
        if len(rows) != states or any(len(row) != states for row in rows):
            raise UserError(f"env.{key}: needs {states} rows of {states} numbers, one per entry of env.zipf_skewness")
        for number, row in enumerate(rows):
            for value in row:
                self.number(key, value, 0.0, 1.0, False)
            if abs(sum(row) - 1) > 1e-6:
                raise UserError(f"env.{key}: row {number} sums to {sum(row):g}, not to 1")
        return rows

    def part(self, name: str) -> dict[str, Any]:
        """The class of a part as `_target_`, and all its keys."""
        values = getattr(self.config, name)
        key = f"env.{name}"
        if isinstance(values, str):
            raise UserError(f"{key}: {values!r} is no group of keys; choose with env/{name}={values}")
        return {**asdict(config_of(class_of(values, key), values, key)), "_target_": values["_target_"]}

    def service(self, models: int) -> dict[str, Tensor]:
        out: dict[str, list[float]] = {}
        for spec in fields(ServiceConfig):
            value = getattr(self.config.service, spec.name)
            values = list(value) if isinstance(value, (list, tuple)) else [value] * models
            if len(values) != models:
                raise UserError(
                    f"env.service.{spec.name}: {len(values)} numbers for {models} models; give one, or one per model"
                )
            for v in values:
                self.number(f"service.{spec.name}", v, -1e9 if "metric" in spec.name else 0.0, 1e9, False)
            out[spec.name] = [float(v) for v in values]
        tensors = {key: torch.tensor(values) for key, values in out.items()}  # compared in the precision that divides
        if (tensors["full_steps"] <= tensors["floor_steps"]).any():
            raise UserError("env.service.full_steps: must exceed env.service.floor_steps for every model")
        if (tensors["best_metric"] == tensors["worst_metric"]).any():
            raise UserError("env.service.best_metric: must differ from env.service.worst_metric for every model")
        return tensors

    @staticmethod
    def number(key: str, value: Any, minimum: float, maximum: float, exclusive: bool = False) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"env.{key}: {value!r} is not a number")
        if not math.isfinite(value) or value < minimum or value > maximum or (exclusive and value == minimum):
            low = f"above {minimum:g}" if exclusive else f"at least {minimum:g}"
            raise UserError(f"env.{key}: {value} is not a finite number {low} and at most {maximum:g}")
