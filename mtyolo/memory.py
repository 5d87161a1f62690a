"""Memory that steps on a CPU free, kept for the next step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""glibc's numbers of: free bytes at the heap's end beyond which they go back to the system; size from which a block may
be the system's; how many such blocks there may be."""
KEPT = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
STOCK = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}
"""Where glibc's own rules end up after blocks of many megabytes; once asked for anything it follows them no more."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


class _Holders:
    """Who wants memory kept: the last one to leave gives it back."""

    def __init__(self) -> None:
        self.number = 0
        self.lock = Lock()

    def change(self, by: int) -> int:
        with self.lock:
            self.number += by
            return self.number


_holders = _Holders()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, what is freed waits for the next step; afterwards it goes back to the system. Also a decorator.

    Else glibc gives maps of a step back at once, and gets them anew as pages of zeros, one at a time: 20,000 to 100,000
    a step, 6 to 20 % of its time (tests/benchmarks/memory.py). Does nothing with another C library, or where the
    environment has its own settings for it.
    """
    library = _glibc()
    if library is None:
        yield
        return
    if _holders.change(+1) == 1:
        _tell(library, KEPT)
    try:
        yield
    finally:
        if _holders.change(-1) == 0:
            _tell(library, STOCK)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if os.name != "posix" or any(name in os.environ for name in SETTINGS):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _tell(library: ctypes.CDLL, settings: dict[int, int]) -> None:
    for name, value in settings.items():
        library.mallopt(name, value)
