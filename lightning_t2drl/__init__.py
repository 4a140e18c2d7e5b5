"""Lightning-T2DRL: two-timescale model caching and resource allocation for edge-served generative AI.

The public names are imported when they are first used, so that `lightning_t2drl.deploy.Controller` needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_t2drl.errors import UserError

if TYPE_CHECKING:
    from lightning_t2drl.envs import EdgeAIGCEnv
    from lightning_t2drl.run.api import evaluate, load_policy, train
    from lightning_t2drl.system import load_scenario

__version__ = "0.2.0"

__all__ = ["EdgeAIGCEnv", "UserError", "__version__", "evaluate", "load_policy", "load_scenario", "train"]

_FROM = {
    "EdgeAIGCEnv": "lightning_t2drl.envs",
    "load_scenario": "lightning_t2drl.system",
    "train": "lightning_t2drl.run.api",
    "evaluate": "lightning_t2drl.run.api",
    "load_policy": "lightning_t2drl.run.api",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
