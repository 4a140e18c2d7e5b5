"""The world as environments for TorchRL, Gymnasium and PettingZoo."""

from lightning_t2drl.envs.edge_aigc import EdgeAIGCEnv

__all__ = ["EdgeAIGCEnv"]
