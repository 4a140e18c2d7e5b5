"""What makes the CPU fast at large batches: which kernels multiply matrices, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# Below this many rows per product, what oneDNN takes to look a kernel up is more than its kernels save.
WORTHWHILE_ROWS = 64
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
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if rows < WORTHWHILE_ROWS or not onednn_is_exact():
        yield
        return
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN's products are as exact as float32 can be, even with permission to round."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, 256, generator=generator) for _ in range(2))
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    product = x @ y
    setting.fp32_precision = before
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
