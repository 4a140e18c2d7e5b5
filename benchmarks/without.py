"""`train.py` of the commit that `benchmarks.tricks` tries, some of its tricks replaced by the library's plain way.

    python -P benchmarks/without.py REPORT TRICK,TRICK [key=value ...]

The commit's own packages have to come first on PYTHONPATH. REPORT is written at the end: CPU seconds of each part.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import LazyTensorStorage, ReplayBuffer

from callbacks import PeriodicEvaluation
from lightning_t2drl import compiled, gradients, kernels, optimizers, replay, two_timescale
from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import TrainConfig
from lightning_t2drl.envs.edge_aigc import EdgeAIGCEnv
from lightning_t2drl.networks.mlp import MLPTrunk
from lightning_t2drl.system import records
from lightning_t2drl.training import train

# -- the plain ways


def replace(old: object, new: object) -> None:
    """Wherever the project's modules have a name for `old`, let it mean `new`."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "lightning_t2drl":
            for key in [key for key, value in vars(module).items() if value is old]:
                setattr(module, key, new)


def fast_products() -> None:
    replace(kernels.fast_products, lambda rows: nullcontext())
    for old, new in ((kernels.mm, torch.mm), (kernels.addmm, torch.addmm), (kernels.linear, F.linear)):
        replace(old, new)


def keep_freed_memory() -> None:
    replace(kernels.keep_freed_memory, lambda: None)


def narrow_products() -> None:
    from lightning_t2drl import narrow_products  # imports the compiler

    replace(narrow_products.NarrowProducts, lambda: None)  # the option's default: no pass


def mlp_chain() -> None:
    del MLPTrunk.chain


def fused_adam() -> None:
    replace(optimizers.FusedAdam, lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True))


def clip_gradients() -> None:
    def clip(parameters: Any, most: float) -> None:
        if most:
            torch.nn.utils.clip_grad_norm_(parameters, most)

    replace(gradients.clip_gradients, clip)


def record() -> None:
    replace(records.record, lambda content, batch_size, device: TensorDict(content, batch_size, device=device))


class PlainReplay:
    """TorchRL's replay buffer over a TensorDict with one entry per field."""

    def __init__(self, fields: dict[str, int], capacity: int, seed: int, device: torch.device) -> None:
        self.fields = fields
        generator = torch.Generator(device=device).manual_seed(seed)
        self._buffer = ReplayBuffer(storage=LazyTensorStorage(capacity, device=device), generator=generator)

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, transition: dict[str, Tensor]) -> None:
        rows = {name: transition[name].flatten(0, -2) for name in self.fields}
        self._buffer.extend(TensorDict(rows, [len(rows["state"])]))

    def sample(self, batch_size: int) -> dict[str, Tensor]:
        batch = self._buffer.sample(batch_size)
        return {name: batch[name] for name in self.fields}

    def state_dict(self) -> dict[str, Any]:
        """The rows filled so far, as the packed buffer saves them, and the rest."""
        state = self._buffer.state_dict()
        if len(self):
            state["_storage"]["_storage"] = {name: self._buffer[:][name].clone() for name in self.fields}
        return state


def packed_replay() -> None:
    replace(replay.PackedReplay, PlainReplay)


def slot_phase() -> None:
    def align(env: EdgeAIGCEnv) -> None:
        env._slot = None

    EdgeAIGCEnv._align = align


WITHOUT: dict[str, Callable[[], None]] = {
    plain.__name__: plain
    for plain in (
        fast_products, keep_freed_memory, narrow_products, mlp_chain, fused_adam, clip_gradients, record, packed_replay,
        slot_phase,
    )
}  # fmt: skip


# -- the clock


def cpu() -> float:
    """Seconds of this process and of those that it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(owner: type, name: str) -> list[float]:
    """Has every call of a method add its CPU seconds to the list returned."""
    method, seconds = getattr(owner, name), list[float]()

    @wraps(method)
    def clocked(*arguments: Any, **named: Any) -> Any:
        begin = cpu()
        try:
            return method(*arguments, **named)
        finally:
            seconds.append(cpu() - begin)

    setattr(owner, name, clocked)
    return seconds


def main() -> None:
    report, tricks, *sys.argv[1:] = sys.argv[1:]
    for name in filter(None, tricks.split(",")):
        WITHOUT[name]()
    frames = timed(two_timescale.TwoTimescaleModule, "training_step")
    evaluations = timed(PeriodicEvaluation, "_evaluate")
    compiling = timed(compiled.CompiledUpdate, "_compile")
    entry_point("train", TrainConfig, train)
    if "compile=true" in sys.argv and not compiling:
        raise RuntimeError("nothing was compiled")
    parts = {"frames": frames, "evaluations": evaluations, "compiling": compiling}
    Path(report).write_text(json.dumps(parts | {"package": compiled.__file__}))


if __name__ == "__main__":
    main()
