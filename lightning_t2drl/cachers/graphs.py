"""A learned cacher's decision as a function of the demand that an operator observes, for export."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_t2drl.system.caching import amend_cache


class CacherGraph(nn.Module):
    """One frame's cache; `cacher` has `choose(state) -> cache` and a `scenario`."""

    def __init__(self, cacher: Any) -> None:
        super().__init__()
        self.cacher = cacher

    def forward(self, *inputs: Tensor) -> Tensor:
        """Bool [N, M] from what `needed` lists: popularity [N, P], models held [N, M], load [N, 3]."""
        observation = dict(zip(self.cacher.needed, inputs, strict=True))
        return amend_cache(self.cacher.scenario, self.cacher.choose(observation))
