"""A trained policy outside this project: written as ONNX files, run without PyTorch."""

from lightning_t2drl.deploy.controller import Allocation, Controller

__all__ = ["Allocation", "Controller"]
