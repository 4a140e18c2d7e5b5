"""What makes the CPU fast at large batches: which kernels multiply matrices, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Below so many rows in a batch, or multiplications in a product, what oneDNN takes to look a kernel up is more than its
# kernels save.
WORTHWHILE_ROWS = 64
WORTHWHILE_PRODUCT = 700_000
ROUNDING = 1e-6  # relative; bfloat16 products would be off by 1e-3


@contextmanager
def fast_products(rows: int) -> Iterator[None]:
    """Inside, float32 matrices are multiplied by oneDNN's kernels where that is worth it and as exact.

    PyTorch multiplies float32 matrices with MKL, which on AMD processors reaches half of what the processor can do.
    oneDNN is only reached by permission to round to bfloat16, which it makes use of on processors with units for
    that (AMX); so whether its products are exact on this processor is tried out, once.

    Args:
        rows: of the matrices that are going to be multiplied.
    """
    if rows < WORTHWHILE_ROWS or _without is not None or not onednn_is_exact():
        yield
    else:
        with _onednn():
            yield


_setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_without: str | None = None  # what the setting is without oneDNN, while it is with oneDNN


@contextmanager
def _onednn() -> Iterator[None]:
    global _without
    _without = _setting.fp32_precision
    _setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        _setting.fp32_precision, _without = _without, None


def mm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.mm`, [n, k] @ [k, m]; inside `fast_products` too, a small one is left to MKL."""
    return _multiply(torch.mm, a.numel() * b.shape[1], a, b)


def addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.addmm`, `mm` plus [m] or [n, m]."""
    return _multiply(torch.addmm, a.numel() * b.shape[1], bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; for one output without MKL and oneDNN, which are slow at vectors."""
    if len(weight) == 1 and bias is not None:
        return (x * weight).sum(-1, keepdim=True) + bias
    return _multiply(F.linear, x.numel() * len(weight), x, weight, bias)


def _multiply(product: Callable[..., Tensor], multiplications: int, *factors: Tensor | None) -> Tensor:
    if _without is None or multiplications > WORTHWHILE_PRODUCT:
        return product(*factors)
    _setting.fp32_precision = _without
    try:
        return product(*factors)
    finally:
        _setting.fp32_precision = "bf16"


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN's products are as exact as float32 can be, even with permission to round."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, 256, generator=generator) for _ in range(2))
    with _onednn():
        product = x @ y
    exact = x.double() @ y.double()
    return bool((product - exact).norm() <= ROUNDING * exact.norm())


MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**30), "M_TOP_PAD": (-2, 2**26), "M_MMAP_THRESHOLD": (-3, 2**25)}  # bytes


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for itself, where its C library is glibc.

    By default glibc may hand large blocks back to the system as soon as they are freed, and the next update asks for
    them anew, page by page. How often depends on all that the process allocated before: it takes up to a quarter of
    the time of an update of set networks at 256 transitions, and some percent of a whole training run.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for option, value in MALLOPT.values():
            library.mallopt(option, value)
