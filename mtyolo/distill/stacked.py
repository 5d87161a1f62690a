"""Safetensors files, a picture each, into one array a tensor.

Values go straight from a file to their place in the batch. Reading files with the library and stacking them, two copies
more, takes two to two and a half times as long, and a step waits for it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mtyolo.errors import StoreError

HALF, BYTES = "F16", 2
LENGTH_BYTES = 8
LARGEST_HEADER = 2**20

Arrays = dict[str, NDArray[np.float16]]  # by name
Layout = dict[str, tuple[int, ...]]  # name -> shape, in the order of the values


def read_stacked(paths: Sequence[Path], by: str = "", *, only: str = "") -> Arrays:
    """Name -> [B, …], in half precision. Raises StoreError for a file that is damaged, or holds other tensors.

    by: what makes a removed file again, as the end of the message; by default whoever asks. only: how the names begin
    of those that are wanted; the others are not read.
    """
    layout = read_layout(paths[0], by)
    arrays = {name: np.empty((len(paths), *shape), "<f2") for name, shape in layout.items() if name.startswith(only)}
    for number, path in enumerate(paths):
        with _opened(path, by) as file:
            if _layout(file) != layout:
                raise StoreError(
                    f"{path}: holds other tensors than {paths[0]}; remove both, they will be made again{by}"
                )
            for name, shape in layout.items():
                if name not in arrays:
                    file.seek(BYTES * math.prod(shape), os.SEEK_CUR)
                    continue
                place = arrays[name][number]
                if file.readinto(place.data) != place.nbytes:  # type: ignore[attr-defined]
                    raise ValueError("cut off")
    return arrays


def read_layout(path: Path, by: str = "") -> Layout:
    """What a file holds. Raises StoreError; by: as above."""
    with _opened(path, by) as file:
        return _layout(file)


@contextmanager
def _opened(path: Path, by: str) -> Iterator[BinaryIO]:
    """Whatever is wrong inside is the file's fault."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged: {error}; remove it, it will be made again{by}") from None


def _layout(file: BinaryIO) -> Layout:
    """From the header; the file is left where the values begin. Raises ValueError and others for what is no header."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    tensors: dict[str, dict[str, Any]] = json.loads(file.read(min(length, LARGEST_HEADER)))
    tensors.pop("__metadata__", None)
    layout, begin = Layout(), 0
    for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
        shape = tuple(tensors[name]["shape"])
        if tensors[name]["dtype"] != HALF or not shape or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"{name} is no array in half precision")
        end = begin + BYTES * math.prod(shape)
        if tensors[name]["data_offsets"] != [begin, end]:
            raise ValueError(f"{name} is not where its shape says")
        layout[name], begin = shape, end
    if not layout or file.tell() + begin != os.fstat(file.fileno()).st_size:
        raise ValueError("does not hold what its header says")
    return layout
