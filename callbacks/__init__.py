"""Lightning callbacks: checkpoints at frame boundaries, progress, evaluation, interruption."""

from lightning_t2drl.callbacks.checkpoint import FrameCheckpoint
from lightning_t2drl.callbacks.evaluation import PeriodicEvaluation
from lightning_t2drl.callbacks.interruption import GracefulStop
from lightning_t2drl.callbacks.progress import FrameProgress

__all__ = ["FrameCheckpoint", "FrameProgress", "GracefulStop", "PeriodicEvaluation"]
