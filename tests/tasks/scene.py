"""Random labels and outputs of a small three-task model: 96 x 128 pixels, 4 images, 5 classes, 3 points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs, Targets
from mtyolo.tasks.detect.decode import decode

HEIGHT, WIDTH, IMAGES, CLASSES, POINTS, PROTOTYPES = 96, 128, 4, 5, 3, 8


class Scene(NamedTuple):
    outputs: Outputs
    targets: Targets
    anchors: Tensor
    strides: list[int]
    shapes: list[tuple[int, int]]

    @property
    def decoded(self) -> Tensor:
        return decode(self.outputs.detect, self.anchors, self.strides)

    def leaves(self) -> list[Tensor]:
        outputs = self.outputs
        assert outputs.segment is not None
        assert outputs.keypoint is not None
        return [
            *outputs.detect,
            *outputs.segment.coefficients,
            outputs.segment.prototypes,
            *outputs.keypoint.points,
            outputs.keypoint.heatmaps,
        ]


def make_scene(objects: int = 12, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    strides = [8, 16, 32]
    shapes = [(HEIGHT // stride, WIDTH // stride) for stride in strides]
    anchors = torch.tensor([[[10, 13], [16, 30]], [[30, 61], [62, 45]], [[116, 90], [60, 80]]], dtype=torch.float32)
    size = 0.05 + 0.6 * rand(objects, 2) ** 2
    centre = size / 2 + (1 - size) * rand(objects, 2)
    keypoints = centre[:, None] + (rand(objects, POINTS, 2) - 0.5) * size[:, None]
    visible = torch.randint(0, 3, (objects, POINTS, 1), generator=generator).float()
    visible[:, 0] = 2
    targets = Targets(
        image_index=torch.randint(0, IMAGES, (objects,), generator=generator),
        classes=torch.randint(0, CLASSES, (objects,), generator=generator),
        boxes_cxcywh=torch.cat((centre, size), 1),
        masks=(rand(objects, HEIGHT // 4, WIDTH // 4) < 0.5).to(torch.uint8),
        keypoints=torch.cat((keypoints, visible), 2),
        labelled={task: torch.ones(IMAGES, dtype=torch.bool) for task in ("detect", "segment", "keypoint")},
    )

    def maps(values: int) -> list[Tensor]:
        return [(4 * rand(IMAGES, 2, *shape, values) - 2).requires_grad_() for shape in shapes]

    prototypes = (2 * rand(IMAGES, PROTOTYPES, HEIGHT // 4, WIDTH // 4) - 1).requires_grad_()
    heatmaps = (2 * rand(IMAGES, POINTS, *shapes[0]) - 1).requires_grad_()
    masks, points = MaskOutputs(maps(PROTOTYPES), prototypes), KeypointOutputs(maps(3 * POINTS), heatmaps)
    outputs = Outputs({}, {}, maps(5 + CLASSES), masks, points)
    return Scene(outputs, targets, anchors, strides, shapes)
