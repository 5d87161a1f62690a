"""Losses between masks and between keypoints against loops in plain Python, and their limit cases."""

from __future__ import annotations

import math

import pytest
import torch

from mtyolo.distill.instance_terms import Picks, confident, heatmap_divergence, mask_divergence, point_divergence
from mtyolo.distill.layout import Layout, geometry
from mtyolo.structures import MaskOutputs
from mtyolo.tasks.keypoint.heatmaps import CELLS, LABEL_SPREAD, place, windows

CLASSES = 3
SIZE = (64, 64)
LAYOUT = Layout((8, 16), torch.tensor([[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]))


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def divergence(student: float, teacher: float) -> float:
    found, wanted = probability(student), probability(teacher)
    return wanted * math.log(wanted / found) + (1 - wanted) * math.log((1 - wanted) / (1 - found))


def picks() -> Picks:
    """Two rows of the first image, one of the second."""
    return Picks(
        image=torch.tensor([0, 0, 1]),
        row=torch.tensor([3, 130, 60]),
        belief=torch.tensor([0.9, 0.5, 0.7]),
        boxes_cxcywh=torch.tensor([[20.0, 24, 24, 16], [40, 40, 40, 40], [32, 16, 20, 12]]),
    )


def masks(seed: int, prototypes: int) -> MaskOutputs:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 2, 8, 8), (2, 2, 4, 4)]
    coefficients = [torch.randn(*shape, prototypes, generator=generator) for shape in shapes]
    return MaskOutputs(coefficients, torch.randn(2, prototypes, 16, 16, generator=generator))


def test_masks_agree_with_a_loop_over_pixels_though_prototypes_differ() -> None:
    student, teacher, chosen = masks(0, 4), masks(1, 6), picks()
    total = 0.0
    for n in range(3):
        image = int(chosen.image[n])
        logits = []
        for model in (student, teacher):
            flat = torch.cat([level[image].flatten(0, 2) for level in model.coefficients])
            logits.append((flat[chosen.row[n]][:, None, None] * model.prototypes[image]).sum(0))
        x, y, w, h = (chosen.boxes_cxcywh[n] / 4).tolist()
        inside = [
            divergence(float(logits[0][row, column]), float(logits[1][row, column]))
            for row in range(16)
            for column in range(16)
            if -w / 2 <= column + 0.5 - x < w / 2 and -h / 2 <= row + 0.5 - y < h / 2
        ]
        total += float(chosen.belief[n]) * sum(inside) / len(inside)
    assert float(mask_divergence(student, teacher, chosen, SIZE)) == pytest.approx(total / 2.1, rel=1e-4)


def test_equal_masks_cost_nothing_and_pull_nowhere() -> None:
    student = masks(0, 4)
    student.prototypes.requires_grad_()
    loss = mask_divergence(student, masks(0, 4), picks(), SIZE)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.prototypes.grad is not None
    assert float(student.prototypes.grad.abs().max()) < 1e-6


def test_keypoints_agree_with_a_loop_over_points() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 160, 6, generator=generator) for _ in range(2))
    chosen, sigmas = picks(), torch.tensor([0.05, 0.1])
    total = 0.0
    for n in range(3):
        area = float(chosen.boxes_cxcywh[n, 2] * chosen.boxes_cxcywh[n, 3])
        own, wanted = (rows[chosen.image[n], chosen.row[n]].tolist() for rows in (student, teacher))
        values = []
        for k in range(2):
            dx, dy = ((own[3 * k + i] - wanted[3 * k + i]) * float(chosen.boxes_cxcywh[n, 2 + i]) for i in range(2))
            exponent = (dx**2 + dy**2) / (2 * area * (2 * float(sigmas[k])) ** 2)
            seen = probability(wanted[3 * k + 2])
            values.append(seen * math.log(1 + exponent) + divergence(own[3 * k + 2], wanted[3 * k + 2]))
        total += float(chosen.belief[n]) * sum(values) / 2
    assert float(point_divergence(student, teacher, chosen, sigmas)) == pytest.approx(total / 2.1, rel=1e-4)


def test_equal_keypoints_cost_nothing_and_pull_nowhere() -> None:
    student = torch.randn(2, 160, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = point_divergence(student, student.detach().clone(), picks(), torch.tensor([0.05, 0.1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_heatmaps_agree_with_a_loop_over_cells() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 16, 16)  # the teacher saw larger pictures
    chosen, sigmas = picks(), torch.tensor([0.05, 0.1])
    own, wanted = (windows(maps, chosen.image, chosen.boxes_cxcywh, SIZE).flatten(2) for maps in (student, teacher))
    total = 0.0
    for n in range(3):
        for k in range(2):
            weights = [[math.exp(value) for value in maps[n, k].tolist()] for maps in (own, wanted)]
            found, right = ([weight / sum(some) for weight in some] for some in weights)
            lost = sum(q * math.log(q / p) for p, q in zip(found, right, strict=True))
            total += float(chosen.belief[n]) * lost / 2
    loss = heatmap_divergence(student, teacher, chosen, SIZE, sigmas)
    assert float(loss) == pytest.approx(total / 2.1, rel=1e-4)


def test_equal_heatmaps_cost_nothing_and_pull_nowhere() -> None:
    student = torch.randn(2, 2, 8, 8).requires_grad_()
    loss = heatmap_divergence(student, student.detach().clone(), picks(), SIZE, torch.tensor([0.05, 0.1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_rows_of_a_teacher_without_heatmaps_teach_them_where_they_see_a_point() -> None:
    """Nothing is left to learn where the windows hold the bumps themselves; what is unseen teaches nothing."""
    rows, sigmas = torch.zeros(2, 160, 6), torch.tensor([0.1, 0.2])
    rows[..., 2], rows[..., 5] = 20.0, -20.0
    chosen = Picks(*(part[2:] for part in picks()))
    boxes = chosen.boxes_cxcywh
    bumps = place(boxes[:, None, :2].expand(-1, 2, -1), boxes, sigmas, LABEL_SPREAD).bumps()
    # A picture that is one box's window, cell by cell.
    whole = Picks(torch.tensor([0]), chosen.row, chosen.belief, boxes)
    size = (round(float(boxes[0, 3]) * 1.2), round(float(boxes[0, 2]) * 1.2))
    whole = whole._replace(boxes_cxcywh=torch.tensor([[size[1] / 2, size[0] / 2, size[1] / 1.2, size[0] / 1.2]]))
    maps = bumps.view(1, 2, CELLS, CELLS)
    assert float(heatmap_divergence(maps, rows[:1], whole, size, sigmas)) < 0.01
    nothing = heatmap_divergence(torch.zeros_like(maps), rows[:1], whole, size, sigmas)
    assert float(nothing) > 0.2
    rows[..., 2] = -20.0
    assert float(heatmap_divergence(torch.zeros_like(maps), rows[:1], whole, size, sigmas)) < 1e-6


def test_confident_rows_are_those_above_a_quarter_with_their_decoded_boxes() -> None:
    teacher = torch.full((2, 160, 5 + CLASSES), -8.0)
    teacher[0, 9, 4:6] = 8.0
    teacher[1, 135, 4] = 8.0
    teacher[1, 135, 6] = 8.0
    teacher[1, 135, :4] = 0.0
    teacher[1, 20, 4], teacher[1, 20, 5] = 0.0, -2.0
    found = confident(teacher, geometry(LAYOUT, SIZE))
    assert found.image.tolist() == [0, 1]
    assert found.row.tolist() == [9, 135]
    # Row 135: the second level (after 128 rows), first anchor, cell 7 of a 4 x 4 map: column 3, row 1.
    assert found.boxes_cxcywh[1].tolist() == pytest.approx([56.0, 24.0, 30.0, 61.0])
