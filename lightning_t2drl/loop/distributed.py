"""Several processes, one set of parameters: who averages what, and when."""

from __future__ import annotations

import os

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks and writes; true before any other was started."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


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
