"""Train a cacher and an allocator: python train.py experiment=t2drl [key=value ...]."""

from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import TrainConfig
from lightning_t2drl.training import train

if __name__ == "__main__":
    entry_point("train", TrainConfig, train)
