"""Safetensors files of one layout, a picture each, into one array a tensor.

Values go straight from a file to their place in the batch. Reading files with the library and stacking them, two copies
more, takes two and a half times as long, and a step waits for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtyolo.errors import StoreError

LENGTH_BYTES = 8
LARGEST_HEADER = 2**20

Arrays = dict[str, NDArray[np.float16]]  # by name


def read_stacked(paths: Sequence[Path]) -> Arrays:
    """Name -> [B, …], in half precision. Raises StoreError for a file that is damaged, or laid out unlike the first."""
    header = _header(paths[0])
    described = _described(paths[0], header)
    arrays = {name: np.empty((len(paths), *about["shape"]), np.float16) for name, about in described.items()}
    for number, path in enumerate(paths):
        _fill(path, header, [array[number] for array in arrays.values()])
    return arrays


def read_shapes(path: Path) -> dict[str, list[int]]:
    """What a file holds."""
    return {name: about["shape"] for name, about in _described(path, _header(path)).items()}


def _header(path: Path) -> bytes:
    """Its length and itself."""
    try:
        with path.open("rb") as file:
            length = file.read(LENGTH_BYTES)
            return length + file.read(min(int.from_bytes(length, "little"), LARGEST_HEADER))
    except OSError as error:
        raise _damaged(path, str(error)) from None


def _described(path: Path, header: bytes) -> dict[str, Mapping[str, Any]]:
    """What the header says of each tensor, in the order of their values."""
    try:
        content = json.loads(header[LENGTH_BYTES:])
        tensors = {name: about for name, about in content.items() if name != "__metadata__"}
        ordered = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
        if any(tensors[name]["dtype"] != "F16" for name in ordered):
            raise ValueError("not in half precision")
        values = sum(math.prod(about["shape"]) for about in tensors.values())
        if len(header) + 2 * values != path.stat().st_size:
            raise ValueError("does not fit to the file's length")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header: {error}") from None
    return {name: tensors[name] for name in ordered}


def _fill(path: Path, header: bytes, places: Sequence[NDArray[np.float16]]) -> None:
    try:
        with path.open("rb") as file:
            alike = file.read(len(header)) == header
            whole = alike and all(file.readinto(place.data) == place.nbytes for place in places) and not file.read(1)
    except OSError as error:
        raise _damaged(path, str(error)) from None
    if not whole:
        raise _damaged(path, "cut off, or laid out unlike the others")


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path}: damaged: {reason}; remove it, it will be made again")
