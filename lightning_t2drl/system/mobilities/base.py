"""What a choice of `env/mobility` is: where users start and how they move."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

Walk = dict[str, Tensor]  # `position` [N, U, 2], m, and what else it remembers of each world, [N, ...]


class Mobility:
    """Subclasses implement `start` and `move`, which are given all their random numbers.

    Args:
        scenario: the world's constants. Tensors made here belong on the device of `scenario.sites`.
        config: an instance of the class's `Config`.
    """

    Config: type
    uniforms = 0  # uniform numbers per user and slot that `move` is given
    covers: int | None = None  # slots of the recording that it follows; None: it follows none
    digest = ""  # of that recording: a run goes on with the same one

    def __init__(self, scenario: Scenario, config: Any) -> None:
        self.scenario, self.config = scenario, config

    def start(self, time: Tensor, uniform: Tensor) -> Walk:
        """Where users are when an episode starts.

        Args:
            time: slot of the recorded time at which the episode starts, int64 [N]; 0 without a recording.
            uniform: uniform numbers [N, U, 5].
        """
        raise NotImplementedError

    def move(self, state: Walk, time: Tensor, normal: Tensor, uniform: Tensor) -> Walk:
        """The same one slot of `scenario.slot_duration` later.

        Args:
            state: of the slot before: what `start` or `move` returned, among other things.
            time: the slot that they move to, int64 [N].
            normal: standard normal numbers [N, U, 2].
            uniform: uniform numbers [N, U, `uniforms`].
        """
        raise NotImplementedError
