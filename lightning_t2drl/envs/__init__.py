"""TorchRL environments over `lightning_t2drl.system`."""

from lightning_t2drl.envs.edge_aigc import EdgeAIGCEnv

__all__ = ["EdgeAIGCEnv"]
