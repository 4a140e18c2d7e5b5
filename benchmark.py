"""Compare schemes over seeds and settings: python benchmark.py suite=headline; the same as t2drl benchmark."""

import sys

from lightning_t2drl.run.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
