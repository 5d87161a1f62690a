"""Average precision of keypoints by the COCO definition. https://cocodataset.org/#keypoints-eval"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.records import ImageRecord, Labels
from mtyolo.errors import DataError
from mtyolo.evaluation.coco import Annotation, CocoPrecision, box_annotations
from mtyolo.evaluation.masks import mask_areas
from mtyolo.evaluation.metrics import TaskMetrics
from mtyolo.geometry import AREA_OF_BOX
from mtyolo.structures import Detections

MOST_DETECTIONS = [20]
"""COCO's limit for keypoints."""


class KeypointPrecision(CocoPrecision):
    """Average precision of keypoints by object keypoint similarity (OKS).

    Judged are the classes of which some object has labelled points. Of those classes, objects without labelled points
    and crowd regions are ignored, as COCO does.
    sigmas: falloff of each of the K points, in units of the root of the object's area.
    classes: those that are going to be judged, where that is known before.
    """

    def __init__(
        self, names: Mapping[int, str], sigmas: Sequence[float], classes: Collection[int] | None = None
    ) -> None:
        super().__init__("keypoints", names, MOST_DETECTIONS)
        self.sigmas = np.asarray(sigmas)
        self.classes = None if classes is None else sorted(classes)

    def counts(self, classes: NDArray[Any]) -> NDArray[np.bool_]:
        """[N] bool: of an image's detections, best first, those that the average precision looks at.

        classes: [N], of each.
        """
        chosen = np.zeros(len(classes), dtype=bool)
        for number in np.unique(classes) if self.classes is None else self.classes:
            chosen[np.flatnonzero(classes == number)[: MOST_DETECTIONS[-1]]] = True
        return chosen

    def add(self, detections: Detections, record: ImageRecord) -> None:
        if detections.keypoints is None:
            raise DataError(f"{record.path}: judging keypoints needs detections with keypoints")
        boxes, classes = detections.boxes_xyxy.cpu().numpy(), detections.classes.cpu().numpy()
        found = [
            annotation | {"keypoints": points, "score": score}
            for annotation, points, score in zip(
                box_annotations(classes, boxes),
                self._flat(detections.keypoints.cpu().numpy()),
                detections.scores.tolist(),
                strict=True,
            )
        ]
        self.add_image(record, self._true_annotations(record.labels), found)

    def compute(self) -> TaskMetrics:
        carrying = {annotation["category_id"] for annotation in self.true if annotation["num_keypoints"]}
        return self.judged(sorted(carrying), self.sigmas)

    def _true_annotations(self, labels: Labels) -> list[Annotation]:
        keypoints = np.zeros((len(labels), len(self.sigmas), 3)) if labels.keypoints is None else labels.keypoints
        labelled = (keypoints[..., 2] > 0).sum(1)
        # An object's area is what its json says, else its mask's, else what bodies fill of their boxes on average.
        self.objects += int(((labelled > 0) & ~labels.crowd).sum())
        return [
            annotation
            | {"area": float(said) or float(masked) or AREA_OF_BOX * annotation["area"]}
            | {"keypoints": points, "num_keypoints": int(count), "iscrowd": int(crowd)}
            for annotation, said, masked, points, count, crowd in zip(
                box_annotations(labels.classes, labels.boxes_xyxy),
                np.zeros(len(labels)) if labels.areas is None else labels.areas,
                mask_areas(labels),
                self._flat(keypoints),
                labelled,
                labels.crowd,
                strict=True,
            )
        ]

    def _flat(self, keypoints: NDArray[Any]) -> list[list[float]]:
        """[n, K, 3] -> n times x, y, v, x, y, v, …"""
        return keypoints.reshape(len(keypoints), 3 * len(self.sigmas)).tolist()
