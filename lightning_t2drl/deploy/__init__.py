"""A trained policy for operators: written as ONNX files, run without PyTorch."""

from lightning_t2drl.deploy.controller import Allocation, Controller

__all__ = ["Allocation", "Controller"]
