"""What figures call things, and labels at the ends of curves instead of a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes

NAMES = {  # of schemes, as the README has them
    "t2drl": "T2DRL",
    "t2drl_ddpg": "T2DRL-DDPG",
    "t2drl_paper": "T2DRL, published networks",
    "t2drl_ddpg_paper": "T2DRL-DDPG, published networks",
    "t2drl_literal": "T2DRL, to the letter",
    "t2drl_ddpg_literal": "T2DRL-DDPG, to the letter",
    "single_timescale": "one timescale",
    "rcars": "RCARS",
    "schrs": "SCHRS",
    "popular_exact": "most popular, exact",
    "most_requested": "most requested",
    "lru": "LRU",
    "each_for_itself": "each cell for itself",
    "sets_1": "sets, one round",
    "sets_4": "sets, four rounds",
    "mlp_1": "MLP, one layer",
    "mlp_3": "MLP, three layers",
}
SUFFIXES = {"_same_time": ", same time", "_mish": ", Mish", "_charged": ", loading charged"}
KEYS = {  # of configs, with their units
    "env.users": "users",
    "env.storage_capacity_gb": "storage of a cell, GB",
    "env.bandwidth_mhz": "bandwidth of a cell, MHz",
    "env.alpha": "weight of quality, alpha",
    "env.popularity_change_every": "slots between changes of popularity",
    "allocator.diffusion.steps": "diffusion steps",
    "allocator.actor.hidden": "width of the actor's layers",
    "allocator.actor_learning_rate": "actor's learning rate",
    "cells": "cells",
    "band": "the band",
    "users": "users and their handovers",
    "edge_link": "link between cells, Mbit/s",
    "popularity": "popularity",
    "services": "services on offer",
}
QUANTITIES = {
    "utility": "utility per slot",
    "net_utility": "utility less loading, per slot",
    "hit_ratio": "model hit ratio",
    "violation_ratio": "share of late requests",
    "delay": "delay of a request, s",
    "handover_ratio": "share of users handed over in a slot",
    "nearby_ratio": "served by another cell's model",
    "slots": "slots played",
    "frame": "frames",
}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = "osD^v<>P"
SMALL = 7.5  # points, of the labels


class Look(NamedTuple):
    """How a scheme is drawn in all panels of a figure."""

    color: str
    dashes: str
    marker: str | None


REFERENCES = {"oracle": Look("#000000", "--", None), "rcars": Look("#777777", ":", None)}  # to compare with


NEAR = 0.94  # of the axes' width: curves that end there end at the edge


class End(NamedTuple):
    """The end of a curve, in data coordinates, and what is written there."""

    x: float  # infinite: the right edge of the axes
    y: float
    text: str
    color: str


def scheme_name(scheme: str) -> str:
    """How the README calls a scheme; others keep their names."""
    for suffix, words in SUFFIXES.items():
        if scheme.endswith(suffix):
            return scheme_name(scheme.removesuffix(suffix)) + words
    return NAMES.get(scheme, scheme)


def looks(schemes: Sequence[str]) -> dict[str, Look]:
    """One look per scheme: the references are dark lines, the others differ by colour and marker."""
    others = [scheme for scheme in schemes if scheme not in REFERENCES]
    cycles = zip(others, cycle(PALETTE), cycle(MARKERS), strict=False)
    return REFERENCES | {scheme: Look(color, "-", marker) for scheme, color, marker in cycles}


def across(axes: Axes, scheme: str, level: float) -> End:
    """A reference as a line from edge to edge."""
    look = REFERENCES.get(scheme, Look("#555555", "-.", None))
    axes.axhline(level, color=look.color, ls=look.dashes, lw=1)
    return End(math.inf, level, f"{scheme_name(scheme)} {level:.3f}", look.color)


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Name curves at the right of the axes, beside where they end; labels that would overlap are moved apart.

    Call it when limits and size of the axes are final.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    edge = axes.get_xlim()[1]
    wanted = sorted(((*to_axes.transform((min(end.x, edge), end.y)), end) for end in ends), key=lambda entry: entry[1])
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
    places = spread([y for _, y, _ in wanted], 1.25 * SMALL / height)
    for (x, y, end), place in zip(wanted, places, strict=True):
        text: dict[str, Any] = {
            "xytext": (1.06, place),
            "textcoords": "axes fraction",
            "va": "center",
            "fontsize": SMALL,
        }
        line: dict[str, Any] = {
            "arrowstyle": "-",
            "color": end.color,
            "lw": 0.6,
            "ls": "-" if x > NEAR else ":",  # from afar it must not look like more of the curve
            "shrinkA": 2,
            "shrinkB": 1,
            "relpos": (0, 0.5),
        }
        axes.annotate(end.text, (x, y), xycoords="axes fraction", color=end.color, arrowprops=line, **text)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, in their order, that are at least `gap` apart.

    Neighbours that would overlap become a group around the mean of what its members want, and groups merge.
    """
    groups: list[list[float]] = []  # of each: what its members want, ascending

    def start(group: list[float]) -> float:
        return sum(group) / len(group) - gap * (len(group) - 1) / 2

    for value in wanted:
        groups.append([value])
        while len(groups) > 1 and start(groups[-2]) + gap * len(groups[-2]) > start(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    places = [start(group) + gap * number for group in groups for number in range(len(group))]
    assert all(b - a > gap * (1 - 1e-9) for a, b in pairwise(places))
    return places
