"""What was found in one image: tensors, a drawn picture, json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray
from torch import Tensor

from mtyolo.data.images import read_image
from mtyolo.drawing import draw_detections, save_image
from mtyolo.structures import Detections


@dataclass(slots=True)
class Result:
    """Detections in one image, best first, on the CPU, in pixels of the original, upright image."""

    detections: Detections
    names: Mapping[int, str]
    path: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    """[height, width, 3] RGB of an image that was not read from a file; files are read again when drawn."""
    skeleton: Sequence[tuple[int, int]] | None = None
    """Pairs of points that `draw` joins; None: COCO's for 17 points."""

    def __repr__(self) -> str:
        """A line: notebooks show what a cell ends with, and masks are large."""
        return f"Result({'a picture' if self.path is None else self.path}: {self.counted()})"

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def boxes(self) -> Tensor:
        """[N, 4] xyxy."""
        return self.detections.boxes_xyxy

    @property
    def scores(self) -> Tensor:
        """[N] in 0..1."""
        return self.detections.scores

    @property
    def classes(self) -> Tensor:
        """[N] int64, keys of `names`."""
        return self.detections.classes

    @property
    def masks(self) -> Tensor | None:
        """[N, height, width] bool; None: the model has no segment branch."""
        return self.detections.masks

    @property
    def keypoints(self) -> Tensor | None:
        """[N, K, 3] x, y, visibility in 0..1; None: the model has no keypoint branch."""
        return self.detections.keypoints

    def counted(self) -> str:
        """How many of what: "4 person, 1 bus", in the order of the best of each."""
        counts = Counter(self.names[number] for number in self.classes.tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"

    def draw(self) -> NDArray[np.uint8]:
        """RGB picture with all that was found."""
        if self.pixels is not None:
            return draw_detections(self.pixels, self.detections, self.names, self.skeleton)
        assert self.path is not None
        return draw_detections(read_image(self.path), self.detections, self.names, self.skeleton)

    def save(self, path: str | Path) -> Path:
        """Write the drawn picture, in the format of the suffix."""
        return save_image(self.draw(), path)

    def to_dict(self) -> dict[str, Any]:
        """Ready for json: boxes and points in pixels, masks as COCO run lengths."""
        height, width = self.detections.size
        return {
            "path": None if self.path is None else str(self.path),
            "height": height,
            "width": width,
            "detections": [self._object(number) for number in range(len(self))],
        }

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def _object(self, number: int) -> dict[str, Any]:
        category = int(self.classes[number])
        found: dict[str, Any] = {
            "class": category,
            "name": self.names[category],
            "score": round(float(self.scores[number]), 5),
            "box_xyxy": [round(side, 2) for side in self.boxes[number].tolist()],
        }
        if self.masks is not None:
            rle = rle_codec.encode(np.asfortranarray(self.masks[number].numpy().astype(np.uint8)))
            found["mask"] = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        if self.keypoints is not None:
            found["keypoints"] = [[round(value, 2) for value in point] for point in self.keypoints[number].tolist()]
        return found
