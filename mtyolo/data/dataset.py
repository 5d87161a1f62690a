"""A split as training sees it: item i of epoch e depends only on (seed, e, i)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtyolo.config.training import AugmentConfig
from mtyolo.data.cache import WorkingImages
from mtyolo.data.mosaic import draw_view, place_four, place_one
from mtyolo.data.records import ImageRecord, Split
from mtyolo.data.transforms import (
    MASK_STRIDE,
    Placement,
    Sample,
    clip_boxes,
    jitter_colour,
    mirror,
    paste,
    paste_masks,
    still_seen,
)
from mtyolo.errors import ConfigError, DataError
from mtyolo.geometry import PADDING_GREY, letterbox_of
from mtyolo.keys import pixels_key

logger = logging.getLogger(__name__)

Number = TypeVar("Number", np.uint8, np.float32)
Pick = tuple[int, int]
"""Epoch and index: how a sampler asks, so that workers that outlive an epoch know which one it is."""


class Dataset(torch.utils.data.Dataset[Sample]):
    """Images of a split in a square of `size` pixels with their labels.

    augment: None for letterbox only (evaluation). cache_bytes: how much memory decoded images may take; 0 for none.
    keyed: name the pixels of each sample, for teachers whose outputs are kept.
    An image that turns out damaged is grey, has no labels, is logged, and counts as unlabelled for every task.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache_bytes: int | None = None,
        *,
        keyed: bool = False,
    ) -> None:
        if size <= 0 or size % MASK_STRIDE:
            raise ConfigError(f"image size {size}: expected a positive multiple of {MASK_STRIDE}, best of 32")
        self.split = split
        self.size = size
        self.augment = augment
        self.seed = seed
        self.keyed = keyed
        self.epoch = 0
        self.records = [without_crowd(record) for record in split.records]
        self.working = WorkingImages(self.records, size, cache_bytes)
        self.peers = peers_of(self.records)
        self.may_mirror = split.may_mirror

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch plain indices mean, and samplers hand on."""
        self.epoch = epoch

    def __getitem__(self, pick: int | Pick) -> Sample:
        epoch, index = pick if isinstance(pick, tuple) else (self.epoch, pick)
        if self.augment is None:
            sample = self._letterboxed(index)
        else:
            sample = self._augmented(index, self.augment, np.random.default_rng((self.seed, epoch, index)))
        return replace(sample, key=pixels_key(sample.image)) if self.keyed else sample

    def _letterboxed(self, index: int) -> Sample:
        record = self.records[index]
        letterbox = letterbox_of(record.height, record.width, (self.size, self.size))
        height, width = self.working.shapes[index]
        window = (letterbox.left, letterbox.top, letterbox.left + width, letterbox.top + height)
        return self._drawn([index], [Placement(1.0, letterbox.left, letterbox.top, window)], every_box=True)

    def _augmented(self, index: int, augment: AugmentConfig, random: np.random.Generator) -> Sample:
        if random.random() < augment.mosaic:
            peers = self.peers[index]
            indices = [index, *(int(peers[number]) for number in random.integers(len(peers), size=3))]
            # The image that was asked for takes each of the four places equally often.
            indices = [indices[number] for number in random.permutation(4)]
            view = draw_view(self.size, self.size, augment, random)
            placements = place_four([self.working.shapes[number] for number in indices], self.size, view, random)
        else:
            view = draw_view(self.size, self.size / 2, augment, random)
            indices, placements = [index], [place_one(self.working.shapes[index], self.size, view)]
        sample = replace(self._drawn(indices, placements, every_box=False), index=index)
        sample.image = jitter_colour(sample.image, augment, random)
        if random.random() < augment.flip and self.may_mirror:
            sample = mirror(sample, self.split.flip_idx)
        return sample

    def _drawn(self, indices: Sequence[int], placements: Sequence[Placement], *, every_box: bool) -> Sample:
        """Draw images where they are placed, and carry their labels along."""
        canvas = np.full((self.size, self.size, 3), PADDING_GREY, np.uint8)
        parts = [
            self._part(index, placement, canvas, every_box)
            for index, placement in zip(indices, placements, strict=True)
        ]
        record = self.records[indices[0]]
        return Sample(
            image=canvas,
            classes=np.concatenate([part.classes for part in parts]),
            boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
            masks=_joined([part.masks for part in parts]),
            keypoints=_joined([part.keypoints for part in parts]),
            labelled=frozenset.intersection(*(part.labelled for part in parts)),
            letterbox=letterbox_of(record.height, record.width, (self.size, self.size)),
            index=indices[0],
        )

    def _part(self, index: int, placement: Placement, canvas: NDArray[np.uint8], every_box: bool) -> Sample:
        record, labels = self.records[index], self.records[index].labels
        letterbox = letterbox_of(record.height, record.width, (self.size, self.size))
        try:
            paste(self.working.image(index), placement, canvas)
            labelled, usable = labels.labelled, True
        except DataError as error:
            if self.split.problems.strict:
                raise
            logger.warning("%s; used as an image without labels", error)
            labelled, usable = frozenset[str](), False
        whole = placement.boxes(labels.boxes_xyxy, letterbox.ratio)
        boxes = clip_boxes(whole, placement.window)
        keep = np.flatnonzero(np.full(len(whole), usable) if every_box or not usable else still_seen(whole, boxes))
        return Sample(
            image=canvas,
            classes=labels.classes[keep],
            boxes_xyxy=boxes[keep],
            masks=self._masks(index, placement, keep) if labels.segments is not None else None,
            keypoints=None if labels.keypoints is None else placement.points(labels.keypoints[keep], letterbox.ratio),
            labelled=labelled,
            letterbox=letterbox,
            index=index,
        )

    def _masks(self, index: int, placement: Placement, keep: NDArray[np.int64]) -> NDArray[np.uint8]:
        cells = self.size // MASK_STRIDE
        masks = np.zeros((len(keep), cells, cells), np.uint8)
        if len(keep):
            paste_masks(self.working.masks(index, keep), self.working.shapes[index], placement, masks)
        return masks


def _joined(arrays: Sequence[NDArray[Number] | None]) -> NDArray[Number] | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None


def without_crowd(record: ImageRecord) -> ImageRecord:
    """Crowd regions are for evaluation to ignore, never to learn from."""
    if not record.labels.crowd.any():
        return record
    return replace(record, labels=record.labels.select(~record.labels.crowd))


def peers_of(records: Sequence[ImageRecord]) -> list[NDArray[np.int64]]:
    """For each image those labelled for the same tasks: a mosaic is labelled only for what all four are."""
    groups: dict[frozenset[str], list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.labels.labelled, []).append(index)
    arrays = {labelled: np.array(indices) for labelled, indices in groups.items()}
    return [arrays[record.labels.labelled] for record in records]
