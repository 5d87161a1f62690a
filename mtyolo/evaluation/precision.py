"""Average precision of boxes and masks by the COCO definition, through torchmetrics.

A judge is told one image after another (`add`) and then gives its verdict (`compute`). Detections and labels are in
pixels of the original image. https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from mtyolo.data.records import ImageRecord, Labels, Rle
from mtyolo.errors import DataError
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.structures import Detections

# COCO's own double precision numbers; torchmetrics' defaults come from float32.
OVERLAP_THRESHOLDS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS: list[float] = np.linspace(0, 1, 101).tolist()
AT_50, AT_75 = 0, 5
"""Positions of 0.50 and 0.75 in OVERLAP_THRESHOLDS."""
MOST_DETECTIONS = [1, 10, 100]
"""COCO counts the best 100 detections of each class in an image."""


class Judge(Protocol):
    """What a task's metric is."""

    names: Mapping[int, str]
    images: int
    objects: int

    def add(self, detections: Detections, record: ImageRecord) -> None: ...

    def compute(self) -> TaskMetrics: ...


class BoxPrecision:
    """Average precision of boxes. Crowd regions are neither found nor missed."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.metric = _mean_average_precision("bbox")
        self.images = self.objects = 0

    def add(self, detections: Detections, record: ImageRecord) -> None:
        labels = record.labels
        self.metric.update([_found(detections)], [_true(labels, labels.crowd, mask_areas(labels))])
        self.images += 1
        self.objects += int((~labels.crowd).sum())

    def compute(self) -> TaskMetrics:
        if not self.objects:
            return nothing_to_find(self.images)
        result = self.metric.compute()
        return verdict(result["precision"].numpy(), _classes(result), self)


class MaskPrecision:
    """Average precision of instance masks, of the best 100 detections of an image.

    An object without a mask (a box in a set of polygons) is a region to ignore: it is not labelled, not absent.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        # Boxes too: without them torchmetrics leaves out images that hold no object, and their false alarms.
        self.metric = _mean_average_precision("bbox", "segm")
        self.images = self.objects = 0

    def add(self, detections: Detections, record: ImageRecord) -> None:
        if detections.masks is None:
            raise DataError(f"{record.path}: judging masks needs detections with masks")
        best = slice(MOST_DETECTIONS[-1])
        found = {key: value[best] for key, value in _found(detections).items()}
        labels, masks = record.labels, true_masks(record)
        ignored = labels.crowd | ~masks.any((1, 2))
        masks[~masks.any((1, 2))] = box_masks(labels.boxes_xyxy[~masks.any((1, 2))], (record.height, record.width))
        true = _true(labels, ignored, masks.sum((1, 2), dtype=np.float32)) | {"masks": torch.from_numpy(masks)}
        self.metric.update([found | {"masks": detections.masks[best].cpu()}], [true])
        self.images += 1
        self.objects += int((~ignored).sum())

    def compute(self) -> TaskMetrics:
        if not self.objects:
            return nothing_to_find(self.images)
        result = self.metric.compute()
        return verdict(result["segm_precision"].numpy(), _classes(result), self)


def mask_areas(labels: Labels) -> NDArray[np.float32]:
    """[n] pixels of each object's mask, which is what COCO calls its area; 0 where it has none."""
    segments = labels.segments or [None] * len(labels)
    return np.array([0 if rle is None else rle_codec.area(rle) for rle in segments], np.float32)


def true_masks(record: ImageRecord) -> NDArray[np.bool_]:
    """[n, height, width] of the labels; all False where an object has no mask."""
    masks = np.zeros((len(record.labels), record.height, record.width), np.bool_)
    for number, rle in enumerate(record.labels.segments or []):
        if rle is not None:
            masks[number] = rle_codec.decode(_compressed(rle, record))
    return masks


def box_masks(boxes_xyxy: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[n, 4] pixels -> [n, height, width]: the pixels whose centre lies in the box."""
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    left, top, right, bottom = (side[:, None] for side in boxes_xyxy.T)
    inside_rows = (rows >= top) & (rows <= bottom)
    inside_columns = (columns >= left) & (columns <= right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _compressed(rle: Rle, record: ImageRecord) -> Rle:
    if tuple(rle["size"]) != (record.height, record.width):
        raise DataError(
            f"{record.path}: a mask is {rle['size'][1]}x{rle['size'][0]} pixels, "
            f"the image {record.width}x{record.height}; correct the sizes in the label file"
        )
    return rle


def _mean_average_precision(*kinds: Literal["bbox", "segm"]) -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        iou_type=kinds,
        iou_thresholds=OVERLAP_THRESHOLDS,
        rec_thresholds=RECALL_THRESHOLDS,
        max_detection_thresholds=MOST_DETECTIONS,
        extended_summary=True,
        backend="faster_coco_eval",
    )
    # The limit is COCO's and holds for each class; 300 detections of 80 classes are no reason for a warning.
    metric.warn_on_many_detections = False
    return metric


def _found(detections: Detections) -> dict[str, Tensor]:
    return {
        "boxes": detections.boxes_xyxy.cpu().float(),
        "scores": detections.scores.cpu().float(),
        "labels": detections.classes.cpu(),
    }


def _true(labels: Labels, ignored: NDArray[np.bool_], areas: NDArray[np.float32]) -> dict[str, Tensor]:
    """areas: 0 means that of the box."""
    return {
        "boxes": torch.from_numpy(labels.boxes_xyxy),
        "labels": torch.from_numpy(labels.classes),
        "iscrowd": torch.from_numpy(ignored.astype(np.int64)),
        "area": torch.from_numpy(areas),
    }


def _classes(result: Mapping[str, Tensor]) -> list[int]:
    # torchmetrics makes a number of a list of one.
    return result["classes"].reshape(-1).tolist()


def verdict(precision: NDArray[Any], classes: Sequence[int], judge: Judge) -> TaskMetrics:
    """precision: [threshold, recall, class, area range, detection limit]; -1 marks classes without an object."""
    table = precision[:, :, :, 0, -1]
    present = [number for number in range(len(classes)) if (table[:, :, number] > -1).any()]
    average = table[:, :, present].mean((1, 2))
    per_class = {judge.names[classes[number]]: float(table[:, :, number].mean()) for number in present}
    ap, ap50, ap75 = float(average.mean()), float(average[AT_50]), float(average[AT_75])
    return TaskMetrics(ap, ap50, ap75, judge.images, judge.objects, per_class)


def nothing_to_find(images: int) -> TaskMetrics:
    return TaskMetrics(math.nan, math.nan, math.nan, images, objects=0)
