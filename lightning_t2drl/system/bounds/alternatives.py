"""The bound of the same slots for many caches, which mostly pose the same problem."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_t2drl.system.bounds.slot import slot_bound
from lightning_t2drl.system.scenario import Scenario

TOGETHER = 1 << 21  # slots times caches that are compared at once, to bound what it takes of memory
BITS = 31


def bounds_of_caches(
    scenario: Scenario,
    slots: Mapping[str, Tensor],
    caches: Tensor,
    nearby: Tensor | None = None,
    counts: int = 4,
) -> Tensor:
    """Upper bounds on the utility of slots, if their cells held each of some caches; [A, *].

    Of a cache, and of what other cells hold, a slot is only changed by the models that its users ask for. Caches that
    agree on those pose the same problem, which is solved once: with ten models and ten users about one in three.

    Args:
        slots: what `slot_bound` takes but for caches, [*, ...] by name.
        caches: bool [A, *, M].
        nearby: which models another cell holds, likewise; for cells that fetch misses from each other.
        counts: as for `slot_bound`.
    """
    request, shape = slots["request"], caches.shape[:-1]
    attached = slots.get("attached", torch.ones_like(request, dtype=torch.bool))
    asked = torch.zeros(*request.shape[:-1], scenario.models, dtype=torch.int64, device=request.device)
    asked = asked.scatter_add(-1, request, attached.long()) > 0
    held = {"cache": (caches & asked).flatten(0, -2)}
    if nearby is not None:
        held["nearby"] = (nearby & asked & ~caches).flatten(0, -2)
    slot = torch.arange(request.shape[:-1].numel(), device=request.device).expand(len(caches), -1).flatten()
    problem = _numbered(slot, list(held.values()))
    one = slot.new_empty(int(problem.max()) + 1)
    one[problem] = torch.arange(len(problem), device=one.device)  # any of them: they are alike
    rows = {key: value.flatten(0, request.ndim - 2)[slot[one]] for key, value in slots.items()}
    bound = slot_bound(scenario, **rows, **{k: v[one] for k, v in held.items()}, rounds=0, counts=counts)["bound"]
    return bound[problem].view(shape)


def _numbered(first: Tensor, bits: list[Tensor]) -> Tensor:
    """Numbers from 0 on that are equal where `first`, int64 [n], and all bits, bool [n, *], are."""
    number = first
    for part in [part for table in bits for part in table.split(BITS, -1)]:
        code = (part << torch.arange(part.shape[-1], device=part.device)).sum(-1)
        number = (number << BITS | code).unique(return_inverse=True)[1]
    return number
