"""The world's constants in SI units."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_t2drl.registry import build

if TYPE_CHECKING:
    from lightning_t2drl.system.channels.base import Channel
    from lightning_t2drl.system.demands.base import Demand
    from lightning_t2drl.system.fadings.base import Fading
    from lightning_t2drl.system.mobilities.base import Mobility


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
    popularity_scope: str  # "shared": one popularity chain for all cells; "per_cell": one for each
    request_probability: Tensor  # p_j(m) [J, M]; [B, J, M] where each cell has rankings of its own
    popularity_observation: str  # what the cacher sees of the demand: "state", "probabilities" or "frequencies"
    input_bits: tuple[float, float] | Tensor  # range of d_in, bit; where models differ [M, 2]
    output_bits: tuple[float, float] | Tensor  # range of d_out, likewise
    bandwidth: float  # W, Hz, uplink and downlink alike; cells of one colour share all of their part of it
    reuse: int  # parts that the bandwidth is cut into, one for each colour
    colours: Tensor  # of the cells, int64 [B]; cells of one colour use one part and disturb each other
    user_power: float  # p_user, W
    station_power: float  # p_bs, W
    noise_density: float  # N0, W/Hz
    site_distance: float  # between neighbouring stations, m
    sites: Tensor  # where the stations stand, m [B, 2]
    radius: float  # m; users keep to the disc around the stations' centroid that reaches this far beyond the farthest
    min_distance: float  # m
    rician_factor: float  # K_R, linear
    mobility_memory: float  # a
    mean_speed: float  # m/s
    speed_deviation: float  # s, m/s
    slot_duration: float  # s, how far users move between two slots
    active_users: tuple[int, int] | None  # range of how many users are there when an episode starts; None: all
    active_users_spread: str  # "linear": each number as likely; "log": each doubling
    arrival_rate: float  # share of the absent users that come at a frame's start
    departure_rate: float  # share of the users present that leave at a frame's start
    shadowing_db: float  # standard deviation of log-normal shadowing, dB; 0: none
    shadowing_memory: float  # of a link's shadowing from slot to slot
    hysteresis_db: float  # how much stronger another station must be to take a user over, dB
    handover_delay: float  # what being taken over adds to a slot's delay, s
    backhaul_rate: float  # R_bh, bit/s, of each cell
    edge_link_rate: float | None  # R_edge between the cells, bit/s; None: there are no links
    step_budget: float  # L, what all steps of a slot may cost
    step_cost: float | Tensor  # of a denoising step, in units of L; where models differ [M], as all that follow
    floor_steps: Tensor  # A1 [M]
    worst_metric: Tensor  # A2 [M]
    full_steps: Tensor  # A3 [M]
    best_metric: Tensor  # A4 [M]
    knots: Tensor | None  # (steps, metric) of quality curves [M, K, 2], the last one repeated; None: A1 to A4 say all
    seconds_per_step: Tensor  # B1 [M]
    base_seconds: Tensor  # B2 [M], s
    alpha: float | Tensor
    deadline: float | Tensor  # tau, s
    deadline_penalty: float | Tensor  # chi
    switch_cost: float  # utility per bit newly loaded
    activity: float  # share of the users present that ask for something in a slot
    parts: dict[str, dict[str, Any]]  # the class of channel, fading, mobility, demand as `_target_`, and its keys
    model_names: tuple[str, ...]
    services: tuple[str, ...]  # which service each model is of
    metrics: tuple[str, ...]  # what each model's metric is, with its unit

    @cached_property
    def slots_per_episode(self) -> int:
        return self.frames_per_episode * self.slots_per_frame

    @cached_property
    def popularity_width(self) -> int:
        """Width of what the cacher sees of the demand."""
        return len(self.demands) if self.popularity_observation == "state" else self.models

    @cached_property
    def everyone_present(self) -> bool:
        """Whether all users are always there."""
        return self.active_users is None and not self.departure_rate

    @cached_property
    def one_crowd(self) -> bool:
        """Whether all users are always attached to the one cell there is, with a request in every slot."""
        return self.cells == 1 and self.everyone_present and self.activity == 1 and not self.recorded_demand

    @cached_property
    def cooperates(self) -> bool:
        """Whether cells fetch models' results from each other."""
        return self.cells > 1 and self.edge_link_rate is not None

    @cached_property
    def chains(self) -> int:
        """How many popularity chains a world has."""
        return self.cells if self.popularity_scope == "per_cell" else 1

    @cached_property
    def turnover(self) -> bool:
        """Whether users come and go at frames' starts."""
        return not self.everyone_present and bool(self.arrival_rate or self.departure_rate)

    @cached_property
    def link_pairs(self) -> tuple[int, int, int]:
        """Pairs of normal numbers per user and slot for the links: fading, shadowing, what the channel needs."""
        return self.cells, self.cells * bool(self.shadowing_db), self.cells * self.channel.pairs

    @cached_property
    def noise_rows(self) -> tuple[int, ...]:
        """Uniform numbers per user and slot: three of its request, both halves of all normal pairs, one of which is for
        its movement, turnover, activity, and what else the mobility needs.
        """
        pairs = 1 + sum(self.link_pairs)
        return 3, pairs, pairs, int(self.turnover), int(self.activity < 1), self.mobility.uniforms

    @cached_property
    def everyone(self) -> Tensor:
        """True, to be expanded where all are meant."""
        return torch.ones(1, dtype=torch.bool, device=self.sites.device)

    @cached_property
    def channel(self) -> Channel:
        """Long-term gains of the links."""
        return build(self.parts["channel"], self, key="env.channel", needs=("gain", "long_term"))

    @cached_property
    def fading(self) -> Fading:
        """What is drawn of the gains in every slot."""
        return build(self.parts["fading"], self, key="env.fading", needs=("power",))

    @cached_property
    def mobility(self) -> Mobility:
        """Where users are and how they move."""
        return build(self.parts["mobility"], self, key="env.mobility", needs=("start", "move"))

    @cached_property
    def requests(self) -> Demand:
        """Who asks for what."""
        return build(self.parts["demand"], self, key="env.demand", needs=("request", "recorded"))

    @cached_property
    def recorded_demand(self) -> bool:
        """Whether requests come from a recording."""
        return self.requests.covers is not None

    @property
    def recordings(self) -> dict[str, str]:
        """A digest of each recording that is followed, by the part that follows it."""
        parts: dict[str, Any] = {"channel": self.channel, "mobility": self.mobility, "demand": self.requests}
        return {name: part.digest for name, part in parts.items() if part.digest}

    @cached_property
    def recorded_slots(self) -> int | None:
        """How many slots are recorded of all that follows a recording; None where nothing does."""
        parts = (self.channel, self.mobility, self.requests)
        return min((part.covers for part in parts if part.covers is not None), default=None)

    @cached_property
    def training_starts(self) -> Tensor:
        """The recorded slots at which an episode may start, int64 [S]."""
        return self._starts(held_out=False)

    @cached_property
    def held_out_starts(self) -> Tensor:
        """The same for evaluation: where demand is recorded, in what training does not see."""
        return self._starts(held_out=True)

    def _starts(self, held_out: bool) -> Tensor:
        slots = 0 if self.recorded_slots is None else self.recorded_slots
        last = max(slots - self.slots_per_episode, 0)
        return self.requests.starts(torch.arange(last + 1, device=self.sites.device), held_out)

    @cached_property
    def cell_bandwidth(self) -> float:
        """What one cell has of the bandwidth, Hz."""
        return self.bandwidth / self.reuse

    @cached_property
    def centre(self) -> Tensor:
        """The stations' centroid, m [2]."""
        return self.sites.mean(0)

    @cached_property
    def area_radius(self) -> float:
        """Radius of the disc around `centre` in which users live, m."""
        return self.radius + torch.linalg.vector_norm(self.sites - self.centre, dim=-1).max().item()

    @cached_property
    def demands(self) -> Tensor:
        """All request probabilities, one row each: [J, M], or [B J, M] where cells have their own rankings."""
        return self.request_probability.flatten(0, -2)

    def demand(self, popularity: Tensor) -> Tensor:
        """Rows of `demands` by which cells in these popularity states are asked, int64 [*, B] like `popularity`."""
        if self.request_probability.ndim == 2:
            return popularity
        return popularity + self.popularity_states * torch.arange(self.cells, device=popularity.device)

    @cached_property
    def request_cdf(self) -> Tensor:
        """Cumulative request probabilities, by row of `demands`."""
        return _cumulative(self.demands)

    @cached_property
    def transition_cdf(self) -> Tensor:
        """Cumulative transition probabilities of the popularity chain [J, J]."""
        return _cumulative(self.popularity_transition)

    @cached_property
    def payload_ranges(self) -> tuple[Tensor, Tensor]:
        """Lower end and width of the ranges of d_in and d_out, bit [2, 1, 1] each; where models differ [2, M]."""
        ranges = (self.input_bits, self.output_bits)
        if any(isinstance(value, Tensor) for value in ranges):
            both = torch.stack([value if isinstance(value, Tensor) else self._every(value) for value in ranges])
            return both[..., 0], both[..., 1] - both[..., 0]
        low, high = torch.tensor(ranges, device=self.model_storage.device).unbind(-1)
        return low.view(2, 1, 1), (high - low).view(2, 1, 1)

    def _every(self, value: tuple[float, float]) -> Tensor:
        """A range that all models share, [M, 2]."""
        return torch.tensor(value, device=self.model_storage.device).expand(self.models, 2)

    @cached_property
    def budget_steps(self) -> float | Tensor:
        """How many steps the whole budget buys, L / cost; where models differ [M]."""
        return self.step_budget / self.step_cost

    @cached_property
    def service_table(self) -> Tensor:
        """A1, A2, A3, A4, B1, B2 by row [6, M], so that one look-up fetches the profiles of models."""
        curves = (self.floor_steps, self.worst_metric, self.full_steps, self.best_metric)
        return torch.stack((*curves, self.seconds_per_step, self.base_seconds))

    @cached_property
    def efficient_steps(self) -> Tensor:
        """The steps at which they bring the most quality each, [M]: A3 of one piece, a knot of several."""
        if self.knots is None:
            return self.full_steps
        worst, best = self.knots[:, :1, 1], self.knots[:, -1:, 1]
        steps, score = self.knots[:, 1:, 0], (self.knots[:, 1:, 1] - worst) / (best - worst)
        return steps.gather(-1, (score / steps).argmax(-1, keepdim=True)).squeeze(-1)

    @cached_property
    def curve_pieces(self) -> Tensor | None:
        """The linear pieces of the quality curves, [M, P, 3]: first step, score there, steps per unit of score.

        As a curve is concave from A1 on, its score is the least of its pieces, cut to [0, 1]. Where a model has fewer
        pieces than others, a last one stays at 1. None where all curves are one piece, from A1 to A3.
        """
        if self.knots is None:
            return None
        worst, best = self.worst_metric.unsqueeze(-1), self.best_metric.unsqueeze(-1)
        steps, score = self.knots[..., 0], (self.knots[..., 1] - worst) / (best - worst)
        rise = steps.diff() / score.diff()
        return torch.stack((steps[:, :-1], score[:, :-1], torch.where(steps.diff() > 0, rise, torch.inf)), -1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The services there are, each once."""
        return tuple(dict.fromkeys(self.services))

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
        return hash((self.name, self.users, self.models, self.storage_capacity))


def _cumulative(probability: Tensor) -> Tensor:
    cumulative = probability.cumsum(-1)
    return cumulative / cumulative[..., -1:]  # rounding must not leave a gap below 1
