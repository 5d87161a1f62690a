"""Memory that steps on a CPU free, kept for the next step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, current_thread, main_thread

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""glibc's numbers of: free bytes at the heap's end beyond which they go back to the system; size from which a block may
be the system's; how many such blocks there may be."""
KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
STOCK = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}
"""Where glibc's own rules end up after blocks of many megabytes; once asked for anything it follows them no more."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


class _Holders:
    """Who wants memory kept: the last one to leave gives it back."""

    def __init__(self) -> None:
        self.number = 0
        self.lock = Lock()

    def change(self, by: int, library: ctypes.CDLL) -> None:
        with self.lock:
            before, self.number = self.number, self.number + by
            if not before:
                _tell(library, KEPT)
            elif not self.number:
                _tell(library, STOCK)
                library.malloc_trim(0)


_holders = _Holders()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, what is freed waits for the next step; afterwards it goes back to the system. Also a decorator.

    Else glibc gives maps of a step back at once, and gets them anew as pages of zeros, one at a time: 35,000 to 240,000
    a training step, a tenth to a fifth of its time (tests/benchmarks/memory.py). Does nothing with another C library,
    where the environment has its own settings for it, and in other threads than the main one, whose heaps stay small
    whatever is set.
    """
    library = _glibc()
    if library is None:
        yield
        return
    _holders.change(+1, library)
    try:
        yield
    finally:
        _holders.change(-1, library)


def give_back() -> None:
    """What is kept goes back to the system now: before processes are forked, each of which would hold on to all of it
    while this one writes there, and so needs it anew."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    own_rules = any(name in os.environ for name in SETTINGS)
    if os.name != "posix" or own_rules or current_thread() is not main_thread():
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _tell(library: ctypes.CDLL, settings: dict[int, int]) -> None:
    for name, value in settings.items():
        library.mallopt(name, value)
