"""Train a cacher and an allocator: python train.py experiment=t2drl [key=value ...]; the same as t2drl train."""

import sys

from lightning_t2drl.run.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
