"""Training in several processes: parameters are the same in all, gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn


def is_rank_zero() -> bool:
    """Whether this process is the one that prints and writes; true before any other is started."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"))


class AlternatingDDPStrategy(DDPStrategy):
    """DDP for a module that takes gradient steps on one network at a time.

    PyTorch's wrapper expects every backward pass to reach every parameter; here each reaches one network's. So the
    module stays unwrapped: ranks start from rank 0's parameters, and `average_gradients` runs before every step.
    """

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict().values():
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor, src=0)


def average_gradients(parameters: Sequence[nn.Parameter], world_size: int) -> None:
    """Replace the gradients of `parameters` by their mean over all ranks, in one flat all-reduce."""
    if world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
