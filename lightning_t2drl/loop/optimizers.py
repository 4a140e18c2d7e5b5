"""Adam with little around its kernel, which matters for networks as small as these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam


class FusedAdam(Adam):
    """`torch.optim.Adam(..., fused=True)`: the same arithmetic, state and checkpoints, with less around them.

    PyTorch's own step looks its parameters' devices, types and options up anew every time. Here all of them are on
    one device, and only the options of `__init__` exist. Arguments as for `torch.optim.Adam`.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient; returns the closure's loss, if there is a closure."""
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not all(states):  # the first step: let PyTorch make the state
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] for p in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return loss


def adam(parameters: Any, rate: float, fused: bool) -> Adam:
    """Adam at its defaults with learning rate `rate`; not `fused` where gradients are scaled."""
    return FusedAdam(parameters, rate) if fused else Adam(parameters, lr=rate)
