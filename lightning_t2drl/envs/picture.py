"""A picture of one world's slot: where users stand, which station serves them, and what each was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

COLOURS = {"the cell": "#0072b2", "another cell": "#cc79a7", "the cloud": "#e69f00", "not yet served": "#999999"}
MODELS = 24  # more are not listed


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A figure as RGB, uint8 [height, width, 3]; [400, 900, 3] of what `paint` returns."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def paint(
    scenario: Scenario,
    slot: int,
    position: Tensor,
    cells: Mapping[str, Any],
    served: Mapping[str, Tensor] | None,
    world: int = 0,
) -> Figure:
    """The slot as a figure: a map of stations and users, each joined to the station that serves it, and what each got.

    Users and models are counted from 0.

    Args:
        scenario: the world's constants.
        slot: how many slots of the episode are over.
        position: of the users, m [N, U, 2].
        cells: the cells' observation of the slot [N, B].
        served: what `EdgeAIGCEnv.play` returned under `served` [N, B]; None: nothing was served yet.
        world: which of the N.
    """
    here, attached = position[world].cpu(), cells["attached"][world].cpu()
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    axes = figure.subplot_mosaic([["map", "bandwidth"], ["map", "steps"]], width_ratios=(1, 1.2))
    site = attached.float().argmax(0)
    source, late = ["not yet served"] * scenario.users, attached.any(0) & False
    if served is not None:
        of_user = {key: value[world].cpu().sum(0) for key, value in served.items() if key != "shares"}
        late = of_user["violated"] > 0
        for user in range(scenario.users):
            near = bool(of_user["nearby"][user]) if "nearby" in of_user else False
            source[user] = "the cell" if of_user["hit"][user] else "another cell" if near else "the cloud"
    _map(axes["map"], scenario, here, attached, site, source, late)
    axes["map"].set_title(f"slot {slot} of {scenario.slots_per_episode}" + _held(cells["cache"][world]), fontsize=9)
    for column, (name, limit) in enumerate((("bandwidth", 100.0), ("steps", scenario.step_budget))):
        heights = [0.0] * scenario.users
        if served is not None:
            heights = (served["shares"][world].cpu().sum(0)[:, column] * limit).tolist()
        axes[name].bar(range(scenario.users), heights, color=[COLOURS[s] for s in source])
        axes[name].set_ylabel("bandwidth, %" if column == 0 else "denoising steps", fontsize=8)
        axes[name].tick_params(labelsize=7)
    axes["steps"].set_xlabel("user", fontsize=8)
    if served is not None:
        utility = of_user["utility"].sum() / attached.sum().clamp_min(1)
        axes["bandwidth"].set_title(f"mean utility {utility:.3f}, {int(late.sum())} late", fontsize=9)
    return figure


def _map(
    ax: Any, scenario: Scenario, here: Tensor, attached: Tensor, site: Tensor, source: list[str], late: Tensor
) -> None:
    sites, centre = scenario.sites.cpu(), scenario.centre.cpu()
    ax.add_patch(Circle((centre[0].item(), centre[1].item()), scenario.area_radius, fill=False, color="#cccccc"))
    for user in range(scenario.users):
        if bool(attached[:, user].any()):
            (x, y), (to_x, to_y) = here[user].tolist(), sites[site[user]].tolist()
            colour = COLOURS[source[user]]
            ax.plot((x, to_x), (y, to_y), color=colour, linewidth=0.8, zorder=1)
            ax.scatter([x], [y], s=40, color=colour, edgecolors="#d00000" if late[user] else "white", lw=1.5, zorder=2)
            ax.annotate(str(user), (x, y), (3, 3), textcoords="offset points", fontsize=6)
    ax.scatter(sites[:, 0], sites[:, 1], marker="^", s=80, color="black", zorder=3)
    reach = scenario.area_radius * 1.05
    ax.set_xlim(centre[0].item() - reach, centre[0].item() + reach)
    ax.set_ylim(centre[1].item() - reach, centre[1].item() + reach)
    ax.set_aspect("equal")
    ax.set_xlabel("m", fontsize=8)
    ax.tick_params(labelsize=7)
    marks = [Line2D([], [], marker="o", linestyle="", color=COLOURS[s], label=f"model in {s}") for s in
             dict.fromkeys(source) if s != "not yet served"]  # fmt: skip
    if bool(late.any()):
        marks.append(Line2D([], [], marker="o", linestyle="", color="white", markeredgecolor="#d00000", label="late"))
    if marks:
        ax.legend(handles=marks, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(marks))


def _held(cache: Tensor) -> str:
    """The models that the one cell holds."""
    held = cache[0].nonzero().flatten().tolist()
    return f", cached: {', '.join(map(str, held)) or 'none'}" if len(cache) == 1 and len(held) <= MODELS else ""
