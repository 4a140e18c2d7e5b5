"""Export a checkpoint's decisions as ONNX: python export.py checkpoint=FILE; the same as t2drl export."""

import sys

from lightning_t2drl.run.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
