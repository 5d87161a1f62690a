"""From raw values to points."""

from __future__ import annotations

from torch import Tensor

from mtyolo.tasks.keypoint.branch import POINT_VALUES


def points_of(raw: Tensor, centres: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 3 * K] raw values to points [N, K, 2] in pixels, and visibility logits [N, K].

    centres: [N, 2], of the cells, in pixels. anchors: [N, 2] width and height in pixels.
    A raw value of one is one anchor away from the cell's centre. Measured in anchors, a hand is as far from the middle
    of a large person as of a small one; in cells (YOLO-Pose, arXiv:2204.06806) the levels' ranges differ by their
    anchors. Not bounded: points may lie outside the box.
    """
    values = raw.float().unflatten(-1, (-1, POINT_VALUES))
    return values[..., :2] * anchors[:, None] + centres[:, None], values[..., 2]
