"""Functions compiled by `torch.compile` where that works, for long runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as partitioner


class Compiled:
    """A function of tensors that is compiled at its first call, or stays as it is, with one line, where that fails.

    The function must draw no random numbers and change nothing, so that a failed first call leaves no trace.
    """

    def __init__(self, function: Callable[..., Any], backend: Any = "inductor") -> None:
        self._plain = function
        self._call = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        self._ran = False

    def __call__(self, *args: Any) -> Any:
        if self._ran:
            return self._call(*args)
        self._plain(*args)  # cached properties are there from now on: the compiler cannot enter their locks
        try:
            # Where each ReLU was positive would be kept as bools, and these take longer than all products together.
            with partitioner.patch(aggressive_recomputation=True, recompute_views=True):
                result = self._call(*args)
            self._ran = True
            return result
        except Exception as error:  # of any of the compiler's many kinds
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            print(f"compile: not possible here ({reason.strip()}); going on without", file=sys.stderr)
            self._call, self._ran = self._plain, True
            return self._call(*args)
