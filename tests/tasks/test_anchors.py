"""The assignment against the rule written out, object by object and anchor by anchor."""

from __future__ import annotations

import pytest
import torch

from mtyolo.structures import Targets
from mtyolo.tasks.anchors import anchor_rows, assign

STRIDES = [8, 16, 32]
SHAPES = [(12, 20), (6, 10), (3, 5)]
ANCHORS = torch.tensor(
    [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]],
    dtype=torch.float32,
)


def targets_of(boxes: torch.Tensor, images: torch.Tensor | None = None) -> Targets:
    count = len(boxes)
    images = torch.arange(count) % 3 if images is None else images
    return Targets(images, torch.zeros(count, dtype=torch.int64), boxes)


def random_boxes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(count, 4, generator=generator)
    boxes[:, 2:] = boxes[:, 2:] ** 3
    # Centres on edges and on cell borders are where the rule is easily got wrong.
    boxes[::4, 0] = torch.tensor([0.0, 1.0, 0.5, 0.05]).repeat(count)[: len(boxes[::4])]
    return boxes


def by_hand(level: int, boxes: torch.Tensor) -> set[tuple[int, int, int, int]]:
    """(object, anchor, row, column): the cell of the centre, and the neighbours that the centre is less than half a
    cell away from, where they exist."""
    found = set()
    rows, columns = SHAPES[level]
    for number, (cx, cy, w, h) in enumerate((boxes * torch.tensor([columns, rows, columns, rows])).tolist()):
        for index, (anchor_w, anchor_h) in enumerate((ANCHORS[level] / STRIDES[level]).tolist()):
            if max(w / anchor_w, anchor_w / w, h / anchor_h, anchor_h / h) >= 4:
                continue
            column, row = min(int(cx), columns - 1), min(int(cy), rows - 1)
            found.add((number, index, row, column))
            if cx % 1 < 0.5 and cx > 1:
                found.add((number, index, row, column - 1 if cx < columns else column))
            if cy % 1 < 0.5 and cy > 1:
                found.add((number, index, row - 1 if cy < rows else row, column))
            if cx % 1 > 0.5 and cx < columns - 1:
                found.add((number, index, row, column + 1))
            if cy % 1 > 0.5 and cy < rows - 1:
                found.add((number, index, row + 1, column))
    return found


@pytest.mark.parametrize("level", [0, 1, 2])
def test_assignment_is_the_official_rule(level: int) -> None:
    boxes = random_boxes(200)
    matches = assign(ANCHORS, STRIDES, SHAPES, targets_of(boxes)).levels[level]
    found = set(
        zip(*(part.tolist() for part in (matches.object, matches.anchor, matches.row, matches.column)), strict=True)
    )
    assert found == by_hand(level, boxes)
    assert len(found) > 100


def test_matches_carry_image_and_box_in_cells() -> None:
    boxes = random_boxes(60)
    targets = targets_of(boxes)
    for stride, shape, matches in zip(STRIDES, SHAPES, assign(ANCHORS, STRIDES, SHAPES, targets).levels, strict=True):
        assert torch.equal(matches.image, targets.image_index[matches.object])
        corner = torch.stack((matches.column, matches.row), 1)
        size = torch.tensor([shape[1], shape[0]])
        absolute = torch.cat((matches.box[:, :2] + corner, matches.box[:, 2:]), 1)
        torch.testing.assert_close(absolute, boxes[matches.object] * size.repeat(2))
        assert (matches.box[:, 2:] * stride < 4 * ANCHORS.amax()).all()


def test_centres_stay_within_reach_of_the_decoded_box() -> None:
    """The decoded centre reaches from -0.5 to 1.5 cells: a match further off could never be learned."""
    boxes = random_boxes(200)
    for matches in assign(ANCHORS, STRIDES, SHAPES, targets_of(boxes)).levels:
        assert matches.box[:, :2].min() >= -0.5
        assert matches.box[:, :2].max() <= 1.5


def test_objects_of_no_size_and_no_objects_match_nothing() -> None:
    degenerate = torch.tensor([[0.5, 0.5, 0.0, 0.2], [0.5, 0.5, 0.0, 0.0]])
    for boxes in (degenerate, torch.zeros(0, 4)):
        assert [len(matches.image) for matches in assign(ANCHORS, STRIDES, SHAPES, targets_of(boxes)).levels] == [0] * 3


def test_rows_of_decoded_output_run_by_level_anchor_y_x() -> None:
    centres, sizes = anchor_rows(SHAPES, ANCHORS, STRIDES)
    assert len(centres) == sum(3 * height * width for height, width in SHAPES)
    row = 3 * 12 * 20 + 2 * 6 * 10 + 4 * 10 + 7  # second level, third anchor, y 4, x 7
    assert centres[row].tolist() == [7.5 * 16, 4.5 * 16]
    assert sizes[row].tolist() == [59, 119]
