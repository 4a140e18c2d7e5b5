"""What a choice of `env/demand` is: which model each user asks for in every slot."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


class Recorded(NamedTuple):
    """What a recording says of a slot."""

    asks: Tensor  # who asks at all, bool [N, U]
    request: Tensor  # for which model, int64 [N, U]; any where nobody asks
    input_bits: Tensor | None  # bit [N, U]; None: it does not say
    output_bits: Tensor | None  # likewise
    cell: Tensor | None  # the cell that is asked, int64 [N, U], -1 where nobody asks; None: the strongest


class Demand:
    """Subclasses implement `request`, or with a recording `recorded`.

    Args:
        scenario: the world's constants. Tensors made here belong on the device of `scenario.sites`.
        config: an instance of the class's `Config`.
    """

    Config: type
    covers: int | None = None  # slots of the recording that it follows; None: it follows none
    digest = ""  # of that recording: a run goes on with the same one

    def __init__(self, scenario: Scenario, config: Any) -> None:
        self.scenario, self.config = scenario, config

    def request(self, popularity: Tensor, serving: Tensor | None, time: Tensor, uniform: Tensor) -> Tensor:
        """The model that each user asks for, int64 [N, U].

        Args:
            popularity: popularity state of each cell, int64 [N, B].
            serving: the cell that serves each user, int64 [N, U], -1 for none; None: there is but one cell.
            time: slot of the episode, int64 [N].
            uniform: uniform numbers [N, U].
        """
        raise NotImplementedError

    def recorded(self, time: Tensor) -> Recorded | None:
        """What is recorded of the slots `time` of each world, int64 [N]; None: nothing is."""
        return None

    def ahead(self, time: Tensor, frame: Tensor) -> Tensor:
        """With a recording: how often each cell is asked for each model from slot `time` [N] to the end of the frame
        that began in slot `frame` [N], int32 [N, B, M]. What an oracle in hindsight knows.
        """
        raise NotImplementedError

    @property
    def frequencies(self) -> Tensor | None:
        """With a recording: how often each model is asked for, [1, M] or by cell [B, 1, M]; sums to 1."""
        return None

    def starts(self, slots: Tensor, held_out: bool) -> Tensor:
        """Of the slots at which an episode could start, int64 [S], those of evaluation (`held_out`) or of training."""
        return slots
