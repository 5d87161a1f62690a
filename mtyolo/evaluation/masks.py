"""Average precision of instance masks by the COCO definition. https://cocodataset.org/#detection-eval

Through faster-coco-eval itself: torchmetrics (which uses it too) wants masks as dense arrays, encodes them whole at
0.7 ms each, several times what it costs here, and leaves out images that hold no mask, with their false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray

from mtyolo.data.records import ImageRecord, Labels, Rle
from mtyolo.errors import DataError
from mtyolo.evaluation.coco import CocoPrecision, box_annotations
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.evaluation.precision import MOST_DETECTIONS
from mtyolo.structures import Detections

MOST_MASKS = MOST_DETECTIONS[-1]
"""Of an image, best first: COCO's limit for a submission."""


class MaskPrecision(CocoPrecision):
    """Average precision of instance masks, of the best 100 detections of an image.

    An object without a mask (a box in a set of polygons) is a region to ignore: it is not labelled, not absent.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__("segm", names, MOST_DETECTIONS)

    def add(self, detections: Detections, record: ImageRecord) -> None:
        if detections.masks is None:
            raise DataError(f"{record.path}: judging masks needs detections with masks")
        labels = record.labels
        ignored = labels.crowd | (mask_areas(labels) == 0)
        self.objects += int((~ignored).sum())
        true = [
            annotation | {"segmentation": rle, "area": float(rle_codec.area(rle)), "iscrowd": int(ignore)}
            for annotation, rle, ignore in zip(
                box_annotations(labels.classes, labels.boxes_xyxy), _true_masks(record), ignored, strict=True
            )
        ]
        self.add_image(record, true, _found_annotations(detections))

    def compute(self) -> TaskMetrics:
        return self.judged(sorted(self.names))


def mask_areas(labels: Labels) -> NDArray[np.float32]:
    """[n] pixels of each object's mask, which is what COCO calls its area; 0 where it has none."""
    segments = labels.segments or [None] * len(labels)
    return np.array([0 if rle is None else rle_codec.area(rle) for rle in segments], np.float32)


def run_lengths(mask: NDArray[np.bool_]) -> Rle:
    """[height, width] -> COCO's compressed run lengths, reading no more than the columns that the mask touches."""
    height, width = mask.shape
    touched = np.flatnonzero(mask.any(0))
    first, last = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)
    # COCO runs down the columns and starts with what is off; the bounds let runs end at the first and last pixel.
    pixels = np.zeros((last - first) * height + 2, np.bool_)
    pixels[1:-1] = mask[:, first:last].T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + first * height
    complete = len(changes) > 0 and changes[-1] == height * width
    counts = np.diff(changes if complete else np.append(changes, height * width), prepend=0)
    return rle_codec.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def _found_annotations(detections: Detections) -> list[dict[str, Any]]:
    assert detections.masks is not None
    best = slice(MOST_MASKS)
    boxes, classes = detections.boxes_xyxy[best].cpu().numpy(), detections.classes[best].cpu().numpy()
    masks, scores = detections.masks[best].cpu().numpy(), detections.scores[best].tolist()
    return [
        annotation | {"segmentation": run_lengths(mask), "score": score}
        for annotation, mask, score in zip(box_annotations(classes, boxes), masks, scores, strict=True)
    ]


def _true_masks(record: ImageRecord) -> list[Rle]:
    """Each object's mask, or the whole of its box where it has none."""
    labels, size = record.labels, (record.height, record.width)
    segments = labels.segments or [None] * len(labels)
    for rle in segments:
        if rle is not None and tuple(rle["size"]) != size:
            raise DataError(
                f"{record.path}: a mask is {rle['size'][1]}x{rle['size'][0]} pixels, the image {size[1]}x{size[0]}; "
                "correct the sizes in the label file"
            )
    boxes = np.concatenate([labels.boxes_xyxy[:, :2], labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]], 1)
    return [
        rle if rle is not None and rle_codec.area(rle) else rle_codec.frPyObjects([box.tolist()], *size)[0]
        for rle, box in zip(segments, boxes.astype(float), strict=True)
    ]
