"""Annotations in COCO's form, and faster-coco-eval's average precision of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from mtyolo.data.records import ImageRecord
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.evaluation.precision import OVERLAP_THRESHOLDS, nothing_to_find, verdict

Annotation = dict[str, Any]


class CocoPrecision:
    """Gathers what is true and what was found, image by image; the rest is the library's.

    most_detections: of an image and class, best first.
    """

    def __init__(
        self, kind: Literal["segm", "keypoints"], names: Mapping[int, str], most_detections: Sequence[int]
    ) -> None:
        self.kind = kind
        self.names = names
        self.most_detections = list(most_detections)
        self.objects = 0
        self.pictures: list[Annotation] = []
        self.true: list[Annotation] = []
        self.found: list[Annotation] = []

    @property
    def images(self) -> int:
        return len(self.pictures)

    def add_image(self, record: ImageRecord, true: Sequence[Annotation], found: Sequence[Annotation]) -> None:
        """An annotation that is true has iscrowd, one that is found has score; both category_id, bbox (xywh), area."""
        number = len(self.pictures) + 1
        self.pictures.append({"id": number, "height": record.height, "width": record.width})
        self.true += [annotation | {"image_id": number} for annotation in true]
        self.found += [annotation | {"image_id": number, "iscrowd": 0} for annotation in found]

    def judged(self, classes: Sequence[int], sigmas: NDArray[Any] | None = None) -> TaskMetrics:
        """Average precision over these classes."""
        if not self.objects:
            return nothing_to_find(self.images)
        evaluation = COCOeval_faster(
            self._coco(self.true, classes), self._coco(self.found, classes), self.kind, kpt_oks_sigmas=sigmas
        )
        evaluation.params.catIds = list(classes)
        evaluation.params.imgIds = [picture["id"] for picture in self.pictures]
        evaluation.params.iouThrs = np.asarray(OVERLAP_THRESHOLDS)
        evaluation.params.maxDets = self.most_detections
        evaluation.evaluate()
        evaluation.accumulate()
        found = verdict(evaluation.eval["precision"], classes, self)
        if self.kind == "keypoints":
            found.similarity = self._mean_best(evaluation.ious)
        return found

    def _mean_best(self, similarities: Mapping[tuple[int, int], Any]) -> float:
        """Mean over the objects with labelled points of the best that was found for each, 0 where nothing was.

        similarities: image and class -> [found, true], rows and columns in the order of the annotations.
        """
        places: Counter[tuple[int, int]] = Counter()
        best = []
        for annotation in self.true:
            pair = (annotation["image_id"], annotation["category_id"])
            column, places[pair] = places[pair], places[pair] + 1
            if annotation["num_keypoints"] and not annotation["iscrowd"]:
                table = np.asarray(similarities[pair])
                best.append(float(table[:, column].max()) if table.size else 0.0)
        return float(np.mean(best))

    def _coco(self, annotations: Sequence[Annotation], classes: Sequence[int]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": self.pictures,
            "categories": [{"id": number, "name": self.names[number]} for number in classes],
            "annotations": [
                annotation | {"id": number}
                for number, annotation in enumerate(annotations, 1)
                if annotation["category_id"] in classes
            ],
        }
        coco.createIndex()
        return coco


def box_annotations(classes: NDArray[Any], boxes_xyxy: NDArray[Any]) -> list[Annotation]:
    """What annotations of all kinds have: class, box, and the box's area."""
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    boxes = np.concatenate([boxes_xyxy[:, :2], sizes], 1).tolist()
    areas = sizes.prod(1).tolist()
    return [
        {"category_id": category, "bbox": box, "area": area}
        for category, box, area in zip(classes.tolist(), boxes, areas, strict=True)
    ]
