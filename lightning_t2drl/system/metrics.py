"""What is reported of served slots: means over the users present."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

# A bandwidth share of 0 means an infinite delay; in means it counts as this many deadlines.
DELAY_CAP = 10.0

MEANS = (
    ("utility", "utility"),
    ("hit_ratio", "hit"),
    ("violation_ratio", "violated"),
    ("quality", "quality"),
    ("tv", "tv"),
)
DELAY_PARTS = ("access_delay", "generation_delay", "backhaul_delay")


def slot_metrics(scenario: Scenario, served: TensorDictBase, attached: Tensor) -> dict[str, Tensor]:
    """Means over the users present, one value per world.

    Args:
        served: what `serve` returned [N, B].
        attached: bool [N, B, U].

    Returns:
        [N] each: `utility`, `hit_ratio`, `violation_ratio`, `quality`, `tv`, `delay` and its parts (s), the paper's
        `weighted_cost` alpha TV + (1 - alpha) D and, with several cells, `handover_ratio` (users taken over in the
        slot) and, with an edge link, `nearby_ratio` (users served from another cell's model).
    """
    users = attached.sum((-1, -2)).clamp_min(1)
    cap = DELAY_CAP * scenario.deadline

    def mean(value: Tensor) -> Tensor:
        return value.sum((-1, -2)) / users

    out = {name: mean(served[key]) for name, key in MEANS}
    for name, key in (("handover_ratio", "handover"), ("nearby_ratio", "nearby")):
        if (flags := served.get(key, None)) is not None:
            out[name] = mean(flags)
    for key in ("delay", *DELAY_PARTS):
        out[key] = mean(served[key].clamp_max(cap))
    out["weighted_cost"] = scenario.alpha * out["tv"] + (1 - scenario.alpha) * out["delay"]
    return out
