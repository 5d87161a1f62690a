"""Average precision by the COCO definition: what judges have in common, and the judge of boxes (torchmetrics).

A judge is told one image after another (`add`) and then gives its verdict (`compute`). Detections and labels are in
pixels of the original image. https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from mtyolo.data.records import ImageRecord
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.structures import Detections

# COCO's own double precision numbers; torchmetrics' defaults come from float32.
OVERLAP_THRESHOLDS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS: list[float] = np.linspace(0, 1, 101).tolist()
AT_50, AT_75 = 0, 5
"""Positions of 0.50 and 0.75 in OVERLAP_THRESHOLDS."""
MOST_DETECTIONS = [1, 10, 100]
"""COCO counts the best 100 detections of each class in an image."""


class Told(Protocol):
    """What a verdict needs to know of its judge."""

    names: Mapping[int, str]
    objects: int

    @property
    def images(self) -> int: ...


class Judge(Told, Protocol):
    """What a task's metric is."""

    def add(self, detections: Detections, record: ImageRecord) -> None: ...

    def compute(self) -> TaskMetrics: ...


class BoxPrecision:
    """Average precision of boxes. Crowd regions are neither found nor missed."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.images = self.objects = 0
        self.metric = MeanAveragePrecision(
            iou_type="bbox",
            iou_thresholds=OVERLAP_THRESHOLDS,
            rec_thresholds=RECALL_THRESHOLDS,
            max_detection_thresholds=MOST_DETECTIONS,
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=False,  # of several processes one judges: it has seen all, and the others do not wait here
        )
        # The limit is COCO's and holds for each class; 300 detections of 80 classes are no reason for a warning.
        self.metric.warn_on_many_detections = False

    def add(self, detections: Detections, record: ImageRecord) -> None:
        labels = record.labels
        found = {
            "boxes": detections.boxes_xyxy.cpu().float(),
            "scores": detections.scores.cpu().float(),
            "labels": detections.classes.cpu(),
        }
        true = {
            "boxes": torch.from_numpy(labels.boxes_xyxy),
            "labels": torch.from_numpy(labels.classes),
            "iscrowd": torch.from_numpy(labels.crowd.astype(np.int64)),
        }
        self.metric.update([found], [true])
        self.images += 1
        self.objects += int((~labels.crowd).sum())

    def compute(self) -> TaskMetrics:
        if not self.objects:
            return nothing_to_find(self.images)
        result: dict[str, Tensor] = self.metric.compute()
        # torchmetrics makes a number of a list of one.
        classes = result["classes"].reshape(-1).tolist()
        return verdict(result["precision"].numpy(), classes, self)


def verdict(precision: NDArray[Any], classes: Sequence[int], judge: Told) -> TaskMetrics:
    """precision: [threshold, recall, class, area range, detection limit]; -1 marks classes without an object."""
    table = precision[:, :, :, 0, -1]
    present = [number for number in range(len(classes)) if (table[:, :, number] > -1).any()]
    average = table[:, :, present].mean((1, 2))
    per_class = {judge.names[classes[number]]: float(table[:, :, number].mean()) for number in present}
    ap, ap50, ap75 = float(average.mean()), float(average[AT_50]), float(average[AT_75])
    return TaskMetrics(ap, ap50, ap75, judge.images, judge.objects, per_class)


def nothing_to_find(images: int) -> TaskMetrics:
    return TaskMetrics(math.nan, math.nan, math.nan, images, objects=0)
