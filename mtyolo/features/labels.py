"""The labels of an input that was put together from stored views, moved exactly as its features were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.cache import decode_masks, free_memory, mask_shape, working_shape
from mtyolo.data.records import ImageRecord
from mtyolo.data.transforms import MASK_STRIDE, Placement, Sample, clip_boxes, paste_masks, still_seen
from mtyolo.features.reader import Piece
from mtyolo.features.shards import Row
from mtyolo.features.views import view_placement
from mtyolo.geometry import letterbox_of

MASK_MEMORY_SHARE = 0.2
"""Of the free memory, for masks that were decoded once."""


class PieceLabels:
    """Draws the labels of pieces. Masks are decoded once and kept, packed, as far as memory allows.

    cell: side of a cell of the coarsest level, in pixels.
    """

    def __init__(self, records: Sequence[ImageRecord], size: int, cell: int, flip_idx: list[int] | None) -> None:
        self.records = records
        self.size = size
        self.cell = cell
        self.flip_idx = flip_idx
        self.packed: dict[int, NDArray[np.uint8]] = {}
        self.left = int(free_memory() * MASK_MEMORY_SHARE)

    def draw(self, index: int, row: Row, piece: Piece) -> Sample:
        """The labels of one image in one piece, with no pixels. Pixels of the input."""
        placement, mirrored = view_placement(row, piece.view, self.size)
        left, top = piece.left * self.cell, piece.top * self.cell
        window = (left, top, left + piece.source.width * self.cell, top + piece.source.height * self.cell)
        right = left - piece.source.left * self.cell
        down = top - piece.source.top * self.cell
        if mirrored:
            # Where it lies before its mirror is the mirror of where it lies after.
            window = (self.size - window[2], window[1], self.size - window[0], window[3])
            right = -right
        whole = window == (0, 0, self.size, self.size) and piece.view == 0
        sample = self._placed(index, row, _moved(placement, right, down, window), every_box=whole)
        return mirror(sample, self.size, self.flip_idx) if mirrored else sample

    def _placed(self, index: int, row: Row, placement: Placement, *, every_box: bool) -> Sample:
        record, labels = self.records[index], self.records[index].labels
        letterbox = letterbox_of(record.height, record.width, (self.size, self.size))
        whole = placement.boxes(labels.boxes_xyxy, letterbox.ratio)
        boxes = clip_boxes(whole, placement.window)
        seen = np.full(len(whole), True) if every_box else still_seen(whole, boxes)
        keep = np.flatnonzero(seen & row.usable)
        masks = None
        if labels.segments is not None:
            masks = np.zeros((len(keep), self.size // MASK_STRIDE, self.size // MASK_STRIDE), np.uint8)
            if len(keep):
                paste_masks(
                    self._masks(index, keep), working_shape(record.height, record.width, self.size), placement, masks
                )
        return Sample(
            image=np.empty((self.size, 0, 3), np.uint8),
            classes=labels.classes[keep],
            boxes_xyxy=boxes[keep],
            masks=masks,
            keypoints=None if labels.keypoints is None else placement.points(labels.keypoints[keep], letterbox.ratio),
            labelled=labels.labelled if row.usable else frozenset(),
            letterbox=letterbox,
            index=index,
        )

    def _masks(self, index: int, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[len(chosen), h / 2, w / 2] of 0 and 1, at half the letterboxed image's size."""
        record = self.records[index]
        height, width = mask_shape(working_shape(record.height, record.width, self.size))
        packed = self.packed.get(index)
        if packed is None:
            masks = decode_masks(record.labels.segments or [], (height, width))
            packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
            if packed.nbytes <= self.left:
                self.packed[index] = packed
                self.left -= packed.nbytes
        return np.unpackbits(packed[chosen], axis=1, count=height * width).reshape(-1, height, width)


def joined(parts: Sequence[Sample]) -> Sample:
    """The labels of several pieces as those of one input."""
    if len(parts) == 1:
        return parts[0]
    masks = [part.masks for part in parts if part.masks is not None]
    keypoints = [part.keypoints for part in parts if part.keypoints is not None]
    return replace(
        parts[0],
        classes=np.concatenate([part.classes for part in parts]),
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
        masks=np.concatenate(masks) if masks else None,
        keypoints=np.concatenate(keypoints) if keypoints else None,
        labelled=frozenset.intersection(*(part.labelled for part in parts)),
    )


def mirror(sample: Sample, width: int, flip_idx: list[int] | None) -> Sample:
    """Left to right, in an input `width` pixels wide. Keypoints also change names."""
    boxes = sample.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - sample.boxes_xyxy[:, [2, 0]]
    keypoints = sample.keypoints
    if keypoints is not None:
        assert flip_idx is not None, "without flip_idx nothing is mirrored"
        keypoints = keypoints[:, flip_idx]
        keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    masks = None if sample.masks is None else np.ascontiguousarray(sample.masks[..., ::-1])
    return replace(sample, boxes_xyxy=boxes, keypoints=keypoints, masks=masks)


def _moved(placement: Placement, right: float, down: float, window: tuple[float, float, float, float]) -> Placement:
    """A placement shifted by pixels, seen only inside `window`."""
    left, top = placement.left + right, placement.top + down
    x1, y1 = max(placement.window[0] + right, window[0]), max(placement.window[1] + down, window[1])
    x2, y2 = min(placement.window[2] + right, window[2]), min(placement.window[3] + down, window[3])
    return Placement(placement.scale, left, top, (x1, y1, max(x1, x2), max(y1, y2)))
