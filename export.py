"""Export a checkpoint's decisions as ONNX: python export.py checkpoint=runs/a/checkpoints/last output=policy."""

from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import ExportConfig
from lightning_t2drl.exporting import run_export

if __name__ == "__main__":
    entry_point("export", ExportConfig, run_export)
