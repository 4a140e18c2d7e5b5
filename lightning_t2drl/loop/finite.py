"""Finds where NaN or infinity first arose in a frame, without waiting for the device in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_t2drl.errors import NonFiniteError


class FiniteWatch:
    """Remembers for each watched quantity when it was first not finite; waits for the device once per `check`."""

    def __init__(self) -> None:
        self._clock = 0
        self._first: dict[str, Tensor] = {}  # by quantity, the clock at its first value that is not finite, else inf

    def add(self, what: str, value: Tensor) -> None:
        """Watch a value of any shape."""
        self._clock += 1
        when = torch.where(value.detach().isfinite().all(), math.inf, float(self._clock))
        self._first[what] = torch.minimum(self._first[what], when) if what in self._first else when

    def check(self, where: str) -> None:
        """Start anew.

        Raises:
            NonFiniteError: naming what was not finite first since the last check.
        """
        if not self._first:
            return
        names, first = list(self._first), torch.stack(list(self._first.values())).tolist()
        self._first, self._clock = {}, 0
        when, name = min(zip(first, names, strict=True))
        if when < math.inf:
            raise NonFiniteError(f"{where}: {name} is NaN or infinite")
