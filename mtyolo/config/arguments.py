"""What is given in Python, held to what the command line's options take."""

from __future__ import annotations

import os
from numbers import Integral, Real

from mtyolo.config.model import LARGEST_SIDE
from mtyolo.errors import ConfigError


def check_arguments(*, size: int | None, batch: int, confidence: float, iou: float, limit: int) -> None:
    """Raises ConfigError naming the first that can not be what was meant. size: None for the model's own."""
    check_size(size)
    check_counts(batch=batch, limit=limit)
    for name, share in (("confidence", confidence), ("iou", iou)):
        if not isinstance(share, Real) or not 0 <= share <= 1:  # nan is not between them either
            raise ConfigError(f"{name}={share!r}: expected a number from 0 to 1")


def check_size(size: int | None) -> None:
    if size is not None and (not isinstance(size, Integral) or not 1 <= size <= LARGEST_SIDE):
        raise ConfigError(f"size={size!r}: expected a whole number of pixels from 1 to {LARGEST_SIDE}")


def check_counts(**counts: int) -> None:
    """Raises ConfigError naming the first that is no whole number from 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ConfigError(f"{name}={count!r}: expected a whole number from 1")


def check_paths(*needed: str, **paths: object) -> None:
    """Raises ConfigError naming the first that is no path. needed: those that may not be None."""
    for name, path in paths.items():
        if not isinstance(path, str | os.PathLike) and (path is not None or name in needed):
            expected = "a model, or its path" if name == "model" else "a path"
            raise ConfigError(f"{name}={path!r}: expected {expected}, got {type(path).__name__}")
