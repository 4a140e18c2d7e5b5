"""The keys of `loop` and `evaluation`. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_t2drl.checks import within


@dataclass
class LoopConfig:
    """Keys of `configs/loop/*.yaml`: how much is played, stored and learned."""

    updates_per_slot: int = 1
    updates_per_frame: int = 4
    slot_batch_size: int = 256
    frame_batch_size: int = 128
    slot_capacity: int = 50_000
    frame_capacity: int = 20_000
    slot_warmup: int = 2_000
    frame_warmup: int = 200
    gradient_clip: float = 10.0
    log_every_n_frames: int = 10

    def __post_init__(self) -> None:
        counts = (0, 1e9)
        within("loop", self, updates_per_slot=(0, 1e4), updates_per_frame=(0, 1e4), gradient_clip=(0, 1e9))
        within("loop", self, slot_warmup=counts, frame_warmup=counts, log_every_n_frames=(1, 1e9))
        within("loop", self, slot_batch_size=(1, 1e6), frame_batch_size=(1, 1e6))
        within("loop", self, slot_capacity=(1, 1e9), frame_capacity=(1, 1e9))


@dataclass
class EvaluationConfig:
    """Keys of `evaluation` in `configs/train.yaml`."""

    every_n_frames: int = 200
    episodes: int = 50
    final_episodes: int = 200
    seed: int = 1_000_003
    diagnosis: bool = True

    def __post_init__(self) -> None:
        within("evaluation", self, every_n_frames=(0, 1e9), episodes=(1, 1e6), final_episodes=(0, 1e6))
        within("evaluation", self, seed=(0, 2**63 - 1))
