"""The few forms that cross a wall between parts: pyramids, labels, outputs, matches, detections, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

Pyramid = dict[int, Tensor]
"""stride -> [B, C, H/stride, W/stride], fine to coarse: the one form in which features travel."""


class Level(NamedTuple):
    """What a component takes or gives at one scale, known before any tensor exists."""

    stride: int
    channels: int


class Letterbox(NamedTuple):
    """How an image was fitted into the network input: scaled by `ratio`, then padded. Sizes in pixels."""

    ratio: float
    left: int
    top: int
    height: int
    width: int
    """height, width: of the original, upright image."""


@dataclass(slots=True)
class Targets:
    """One batch of labels: M objects over B images. Coordinates are fractions of the network input."""

    image_index: Tensor  # [M] int64
    classes: Tensor  # [M] int64
    boxes_cxcywh: Tensor  # [M, 4] float32
    masks: Tensor | None = None  # [M, H/4, W/4] uint8 in {0, 1}; an all-zero mask: this object has none
    keypoints: Tensor | None = None  # [M, K, 3] x, y, v in {0, 1, 2}; all v zero: this object has none
    labelled: dict[str, Tensor] = field(default_factory=dict)  # task -> [B] bool: may this image be judged on it?

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        return self.changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def changed(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """With another tensor for each."""
        return Targets(
            image_index=change(self.image_index),
            classes=change(self.classes),
            boxes_cxcywh=change(self.boxes_cxcywh),
            masks=None if self.masks is None else change(self.masks),
            keypoints=None if self.keypoints is None else change(self.keypoints),
            labelled={task: change(flags) for task, flags in self.labelled.items()},
        )


Draw = Callable[[Sequence[int]], Tensor]
"""Numbers of some of a batch's N pictures -> [n, 3, H, W] uint8 RGB."""


@dataclass(slots=True)
class Batch:
    """What a loader yields: pixels, features computed beforehand, or both, with their labels."""

    targets: Targets
    indices: Tensor  # [B] int64: number of each image in the data set's records
    letterboxes: list[Letterbox]  # how to bring predictions back to original pixels (meaningless after mosaic)
    images: Tensor | None = None  # [B, 3, H, W] uint8 RGB
    pyramid: Pyramid | None = None
    replaced: Pyramid | None = None  # what the layers that the features replace gave on the same pixels; to align to
    draw: Draw | None = None  # the pictures behind a pyramid, for whoever looks at them
    keys: Sequence[str | None] | None = None  # of each picture: where it is the same, the pixels are

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """In memory from which a GPU copies while it computes. A DataLoader asks for it by this name."""
        return self._changed(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def each(pyramid: Pyramid | None) -> Pyramid | None:
            return None if pyramid is None else {stride: change(level) for stride, level in pyramid.items()}

        return replace(
            self,
            targets=self.targets.changed(change),
            images=None if self.images is None else change(self.images),
            pyramid=each(self.pyramid),
            replaced=each(self.replaced),
        )


def input_size(images: Tensor | None, pyramid: Pyramid | None) -> tuple[int, int]:
    """Height and width of the network input that a batch is, or that its features come from."""
    if images is not None:
        return images.shape[-2], images.shape[-1]
    assert pyramid is not None
    stride, features = next(iter(pyramid.items()))
    return features.shape[-2] * stride, features.shape[-1] * stride


class MaskOutputs(NamedTuple):
    """Raw output of the segment branch: an instance's mask is sigmoid(coefficients . prototypes)."""

    coefficients: list[Tensor]  # per level [B, A, H, W, P]
    prototypes: Tensor  # [B, P, H/4, W/4]


class KeypointOutputs(NamedTuple):
    """Raw output of the keypoint branch."""

    points: list[Tensor]  # per level [B, A, H, W, 3 * K]: where each anchor takes its object's points to be
    heatmaps: Tensor | None = None  # [B, K, h, w] logits, as large as the finest level: where each is likely


class Outputs(NamedTuple):
    """One forward pass, raw; the same type in training and evaluation."""

    adapted: Pyramid  # what the adapters gave; empty without an entry
    fused: Pyramid  # what the branches saw
    detect: list[Tensor]  # per level [B, A, H, W, 5 + classes]: the classic three maps
    segment: MaskOutputs | None = None
    keypoint: KeypointOutputs | None = None
    taken: Pyramid | None = None  # what the neck took in, where a branch saw that, too


class Matches(NamedTuple):
    """The anchors of one level that are responsible for objects; N pairs of anchor and object."""

    image: Tensor  # [N] int64
    anchor: Tensor  # [N] int64
    row: Tensor  # [N] int64
    column: Tensor  # [N] int64
    object: Tensor  # [N] int64: number of the object in Targets
    box: Tensor  # [N, 4]: centre relative to the cell's corner, size; both in cells of this level


class Assignment(NamedTuple):
    """Which anchor answers for which object, computed once a step and shared by all branches."""

    levels: list[Matches]


@dataclass(slots=True)
class Detections:
    """What was found in one image, best first. Pixels of the image that `size` gives."""

    boxes_xyxy: Tensor  # [N, 4] float32
    scores: Tensor  # [N] float32
    classes: Tensor  # [N] int64
    masks: Tensor | None = None  # [N, height, width] bool
    keypoints: Tensor | None = None  # [N, K, 3]: x, y in pixels, visibility in 0..1
    size: tuple[int, int] = (0, 0)  # height, width

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> Detections:
        return Detections(
            self.boxes_xyxy.to(device),
            self.scores.to(device),
            self.classes.to(device),
            None if self.masks is None else self.masks.to(device),
            None if self.keypoints is None else self.keypoints.to(device),
            self.size,
        )
