"""Lightning callbacks: checkpoints at frame boundaries, progress, evaluation, interruption."""

from callbacks.checkpoint import FrameCheckpoint
from callbacks.evaluation import PeriodicEvaluation
from callbacks.interruption import GracefulStop
from callbacks.progress import FrameProgress

__all__ = ["FrameCheckpoint", "FrameProgress", "GracefulStop", "PeriodicEvaluation"]
