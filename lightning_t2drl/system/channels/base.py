"""What a choice of `env/channel` is: the long-term gain of every link."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


class Links(NamedTuple):
    """The links of a slot."""

    distance: Tensor  # between station and user on the ground, m [N, B, U]
    time: Tensor  # slot of the episode, or of the recorded time that it plays, int64 [N]
    moved: Tensor | None  # how far each user went since the last slot, m [N, 1, U]; None: not at all, or a new episode
    normal: Tensor  # standard normal numbers of this slot [N, B, U, 2 pairs]
    memory: Tensor | None  # what `long_term` returned of the slot before [N, B, U, *]; None: an episode starts


class Channel:
    """Subclasses implement `gain`; one whose links have a state of their own, `long_term`.

    Args:
        scenario: the world's constants. Tensors made here belong on the device of `scenario.sites`.
        config: an instance of the class's `Config`.
    """

    Config: type
    pairs = 0  # pairs of standard normal numbers per link and slot that `long_term` is given
    covers: int | None = None  # slots of the recording that it follows; None: it follows none
    digest = ""  # of that recording: a run goes on with the same one

    def __init__(self, scenario: Scenario, config: Any) -> None:
        self.scenario, self.config = scenario, config

    def gain(self, distance: Tensor) -> Tensor:
        """Linear power gain without fading, [*], of links this long on the ground, m [*]."""
        raise NotImplementedError

    def long_term(self, links: Links) -> tuple[Tensor, Tensor | None]:
        """The gain of every link [N, B, U], and its memory for the next slot [N, B, U, *] (None: it has none)."""
        return self.gain(links.distance), None
