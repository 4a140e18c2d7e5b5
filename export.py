"""Export a checkpoint's decisions as ONNX: python export.py checkpoint=runs/a/checkpoints/last output=policy."""

from lightning_t2drl.deploy.export import run_export
from lightning_t2drl.run.cli import entry_point
from lightning_t2drl.run.schemas import ExportConfig

if __name__ == "__main__":
    entry_point("export", ExportConfig, run_export)
