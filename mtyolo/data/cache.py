"""Images and masks, decoded once: kept at the working size in memory that worker processes share."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from mtyolo.data.formats.masks import rle_mask
from mtyolo.data.images import read_image
from mtyolo.data.records import ImageRecord, Rle
from mtyolo.errors import DataError
from mtyolo.geometry import letterbox_of, resized_shape

MASK_STEP = 2
"""Masks are kept at half the working size: twice as fine as the quarter at which they are trained."""
MEMORY_SHARE = 0.3
"""Of the memory free when the cache is made. It is only taken as images come in."""
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONTAINER_USE = Path("/sys/fs/cgroup/memory.current")


class WorkingImages:
    """Images resized so that they fit a square of `size`, and their instance masks at half that size.

    Filled as images are asked for; what does not fit into `limit` bytes (default: MEMORY_SHARE of the free memory) is
    decoded anew each time. Worker processes forked from this one read and fill the same memory.
    """

    def __init__(self, records: Sequence[ImageRecord], size: int, limit: int | None = None) -> None:
        self.records = records
        self.size = size
        self.shapes = [working_shape(record.height, record.width, size) for record in records]
        sizes = [self._bytes(index) for index in range(len(records))]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        limit = int(free_memory() * MEMORY_SHARE) if limit is None else limit
        self.kept = int(np.searchsorted(self.offsets, limit, side="right")) - 1
        self._reserve()

    def image(self, index: int) -> NDArray[np.uint8]:
        """[h, w, 3] RGB at the working size, not to be written to. Raises DataError if it can not be decoded."""
        height, width = self.shapes[index]
        if index >= self.kept:
            return self._decode_image(index)
        self._fill(index)
        start = int(self.offsets[index])
        return self._bytes_at(start, height * width * 3).reshape(height, width, 3)

    def masks(self, index: int, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[len(chosen), h / 2, w / 2] of 0 and 1 for the chosen objects; all zero for one that has no mask."""
        height, width = mask_shape(self.shapes[index])
        segments = self.records[index].labels.segments or []
        if index >= self.kept:
            return decode_masks([segments[number] for number in chosen], (height, width))
        self._fill(index)
        row = packed_bytes(height, width)
        start = int(self.offsets[index]) + 3 * self.shapes[index][0] * self.shapes[index][1]
        packed = self._bytes_at(start, row * len(segments)).reshape(len(segments), row)
        return np.unpackbits(packed[chosen], axis=1, count=height * width).reshape(-1, height, width)

    def _bytes(self, index: int) -> int:
        height, width = self.shapes[index]
        segments = self.records[index].labels.segments or []
        return height * width * 3 + len(segments) * packed_bytes(*mask_shape((height, width)))

    def _reserve(self) -> None:
        """Shared pages are taken when first written, so reserving costs nothing."""
        try:
            self.memory = mmap.mmap(-1, int(self.offsets[self.kept]) + len(self.records) + 1)
        except OSError:  # a system that promises no more memory than it has
            self.kept = 0
            self.memory = mmap.mmap(-1, len(self.records) + 1)
        self.filled = np.frombuffer(self.memory, np.uint8, len(self.records), int(self.offsets[self.kept]))

    def _bytes_at(self, start: int, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.memory, np.uint8, count, start)

    def _fill(self, index: int) -> None:
        if self.filled[index]:
            return
        # Two workers may do this at once: they write the same bytes, and the flag last.
        start = int(self.offsets[index])
        image = self._decode_image(index)
        self._bytes_at(start, image.size)[:] = image.reshape(-1)
        segments = self.records[index].labels.segments
        if segments:
            masks = decode_masks(segments, mask_shape(self.shapes[index]))
            packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
            self._bytes_at(start + image.size, packed.size)[:] = packed.reshape(-1)
        self.filled[index] = 1

    def _decode_image(self, index: int) -> NDArray[np.uint8]:
        record = self.records[index]
        image = read_image(record.path)
        if image.shape[:2] != (record.height, record.width):
            raise DataError(f"{record.path}: is {image.shape[1]}x{image.shape[0]}, was {record.width}x{record.height}")
        height, width = self.shapes[index]
        return resize(image, height, width)

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory, for processes that do not fork: they keep their own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("memory", "filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reserve()


def working_shape(height: int, width: int, size: int) -> tuple[int, int]:
    return resized_shape(height, width, letterbox_of(height, width, (size, size)).ratio)


def mask_shape(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // MASK_STEP), -(-shape[1] // MASK_STEP)


def decode_masks(segments: Sequence[Rle | None], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """[n, *shape] of 0 and 1; all zero for an object without a mask."""
    masks = np.zeros((len(segments), *shape), np.uint8)
    for number, segment in enumerate(segments):
        if segment is not None:
            # More than half of a coarse pixel's area covered. Transposed: run lengths go down the columns.
            area = cv2.resize(rle_mask(segment).T * 255, shape, interpolation=cv2.INTER_AREA)
            masks[number] = area.T > 127
    return masks


def packed_bytes(height: int, width: int) -> int:
    return -(-height * width // 8)


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear without antialias: what YOLOv5 was trained on. Area interpolation costs two points of AP at 320."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its container."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        free = min(free, int(CONTAINER_LIMIT.read_text()) - int(CONTAINER_USE.read_text()))
    return max(0, free)
