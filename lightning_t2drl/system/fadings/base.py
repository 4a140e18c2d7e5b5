"""What a choice of `env/fading` is: the power gain of every link that is drawn anew in every slot."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


class Fading:
    """Subclasses implement `power`.

    Args:
        scenario: the world's constants. Tensors made here belong on the device of `scenario.sites`.
        config: an instance of the class's `Config`.
    """

    Config: type

    def __init__(self, scenario: Scenario, config: Any) -> None:
        self.scenario, self.config = scenario, config

    def power(self, normal: Tensor) -> Tensor:
        """|h|^2, of mean 1, [N, B, U] from a pair of standard normal numbers for each link [N, B, U, 2]."""
        raise NotImplementedError
