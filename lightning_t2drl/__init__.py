"""Lightning-T2DRL: two-timescale model caching and resource allocation for edge-served generative AI.

The public names are imported when they are first used, so that `lightning_t2drl.deploy.Controller` needs no PyTorch.
"""

from typing import TYPE_CHECKING

from lightning_t2drl.errors import UserError
from lightning_t2drl.lazily import imported_on_use

if TYPE_CHECKING:
    from lightning_t2drl.envs import EdgeAIGCEnv
    from lightning_t2drl.run.api import evaluate, load_policy, train
    from lightning_t2drl.system import load_scenario

__version__ = "0.2.0"

__all__ = ["EdgeAIGCEnv", "UserError", "__version__", "evaluate", "load_policy", "load_scenario", "train"]

__getattr__, __dir__ = imported_on_use(
    __name__,
    {
        "EdgeAIGCEnv": "lightning_t2drl.envs",
        "load_scenario": "lightning_t2drl.system",
        "train": "lightning_t2drl.run.api",
        "evaluate": "lightning_t2drl.run.api",
        "load_policy": "lightning_t2drl.run.api",
    },
)
