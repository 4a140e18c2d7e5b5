"""Train a cacher and an allocator: python train.py experiment=t2drl [key=value ...]."""

from lightning_t2drl.run.cli import entry_point
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.run.train import train

if __name__ == "__main__":
    entry_point("train", TrainConfig, train)
