"""Average precision of keypoints by the COCO definition, through faster-coco-eval (torchmetrics has none).

https://cocodataset.org/#keypoints-eval
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from mtyolo.data.records import ImageRecord, Labels
from mtyolo.errors import DataError
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.evaluation.precision import OVERLAP_THRESHOLDS, mask_areas, nothing_to_find, verdict
from mtyolo.structures import Detections

MOST_DETECTIONS = 20
"""COCO's limit for keypoints: the best of an image and class."""
AREA_OF_BOX = 0.53
"""A person's share of the box, in place of the mask's area where there is no mask; as CrowdPose and ultralytics do."""


class KeypointPrecision:
    """Average precision of keypoints by object keypoint similarity (OKS).

    Judged are the classes of which some object has labelled points. Of those classes, objects without labelled points
    and crowd regions are ignored, as COCO does.
    sigmas: falloff of each of the K points, in units of the root of the object's area.
    """

    def __init__(self, names: Mapping[int, str], sigmas: Sequence[float]) -> None:
        self.names = names
        self.sigmas = np.asarray(sigmas)
        self.images = self.objects = 0
        self.true: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, detections: Detections, record: ImageRecord) -> None:
        if detections.keypoints is None:
            raise DataError(f"{record.path}: judging keypoints needs detections with keypoints")
        self.images += 1
        self.true += self._true_annotations(record.labels)
        self.found += self._found_annotations(detections)

    def compute(self) -> TaskMetrics:
        if not self.objects:
            return nothing_to_find(self.images)
        judged = sorted({annotation["category_id"] for annotation in self.true if annotation["num_keypoints"]})
        evaluation = COCOeval_faster(
            self._coco(self.true, judged), self._coco(self.found, judged), "keypoints", kpt_oks_sigmas=self.sigmas
        )
        evaluation.params.catIds = judged
        evaluation.params.imgIds = list(range(1, self.images + 1))
        evaluation.params.iouThrs = np.asarray(OVERLAP_THRESHOLDS)
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        return verdict(evaluation.eval["precision"], judged, self)

    def _true_annotations(self, labels: Labels) -> list[dict[str, Any]]:
        keypoints = np.zeros((len(labels), len(self.sigmas), 3)) if labels.keypoints is None else labels.keypoints
        labelled = (keypoints[..., 2] > 0).sum(1)
        areas, crowd = mask_areas(labels), labels.crowd
        areas = np.where(areas > 0, areas, AREA_OF_BOX * _box_areas(labels.boxes_xyxy))
        self.objects += int(((labelled > 0) & ~crowd).sum())
        extras = zip(areas.tolist(), crowd.tolist(), labelled.tolist(), strict=True)
        return [
            annotation | {"area": area, "iscrowd": int(is_crowd), "num_keypoints": count}
            for annotation, (area, is_crowd, count) in zip(
                self._annotations(labels.classes, labels.boxes_xyxy, keypoints), extras, strict=True
            )
        ]

    def _found_annotations(self, detections: Detections) -> list[dict[str, Any]]:
        assert detections.keypoints is not None
        boxes, classes = detections.boxes_xyxy.cpu().numpy(), detections.classes.cpu().numpy()
        extras = zip(_box_areas(boxes).tolist(), detections.scores.tolist(), strict=True)
        return [
            annotation | {"area": area, "score": score, "iscrowd": 0}
            for annotation, (area, score) in zip(
                self._annotations(classes, boxes, detections.keypoints.cpu().numpy()), extras, strict=True
            )
        ]

    def _annotations(
        self, classes: NDArray[Any], boxes_xyxy: NDArray[Any], keypoints: NDArray[Any]
    ) -> list[dict[str, Any]]:
        """What truth and finding have in common, in COCO's form."""
        corners, sizes = boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        boxes = np.concatenate([corners, sizes], 1).tolist()
        points = keypoints.reshape(len(keypoints), 3 * len(self.sigmas)).tolist()
        return [
            {"image_id": self.images, "category_id": category, "bbox": box, "keypoints": flat}
            for category, box, flat in zip(classes.tolist(), boxes, points, strict=True)
        ]

    def _coco(self, annotations: list[dict[str, Any]], judged: list[int]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(1, self.images + 1)],
            "categories": [{"id": number, "name": self.names[number]} for number in judged],
            "annotations": [
                annotation | {"id": number}
                for number, annotation in enumerate(annotations, 1)
                if annotation["category_id"] in judged
            ],
        }
        coco.createIndex()
        return coco


def _box_areas(boxes_xyxy: NDArray[Any]) -> NDArray[Any]:
    return np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
