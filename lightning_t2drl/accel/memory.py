"""What happens to freed memory: kept for the next update, where the C library is glibc.

By default glibc may hand large blocks back to the system as soon as they are freed, and the next update asks for them
anew, page by page. Row in `results/tricks`: 4.7 % of the CPU time of a whole run of set networks, a quarter of that of
an evaluation. It relies on glibc's `mallopt`, a public function; with another C library nothing happens.
"""

from __future__ import annotations

import ctypes
import sys

MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**30), "M_TOP_PAD": (-2, 2**26), "M_MMAP_THRESHOLD": (-3, 2**25)}  # bytes


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for itself."""
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for option, value in MALLOPT.values():
            library.mallopt(option, value)
