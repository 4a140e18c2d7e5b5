"""Evaluate a checkpoint or a pair of policies: python evaluate.py checkpoint=FILE; the same as t2drl evaluate."""

import sys

from lightning_t2drl.run.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
