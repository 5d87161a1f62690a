"""Losses between masks and between keypoints against loops in plain Python, and their limit cases."""

from __future__ import annotations

import math

import pytest
import torch

from mtyolo.distill.instance_terms import Picks, confident, keypoint_divergence, mask_divergence, point_divergence
from mtyolo.distill.layout import Layout, geometry
from mtyolo.structures import KeypointOutputs, MaskOutputs
from mtyolo.tasks.keypoint.heatmaps import CELLS, LABEL_SPREAD, REACH, place, windows

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


SIGMAS = torch.tensor([0.05, 0.1])


def keypoints(seed: int, heatmaps: torch.Tensor | None, visibility: float | None = None) -> KeypointOutputs:
    generator = torch.Generator().manual_seed(seed)
    levels = [0.2 * torch.randn(2, 2, side, side, 6, generator=generator) for side in (8, 4)]
    if visibility is not None:
        for level in levels:
            level[..., 2::3] = visibility
    return KeypointOutputs(levels, heatmaps)


def of_maps(student: KeypointOutputs, teacher: KeypointOutputs, chosen: Picks, size: tuple[int, int] = SIZE) -> float:
    """What heat-maps add."""
    alone = keypoint_divergence(student._replace(heatmaps=None), teacher, chosen, size, SIGMAS)
    return float(keypoint_divergence(student, teacher, chosen, size, SIGMAS) - alone)


def test_heatmaps_agree_with_a_loop_over_cells() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 16, 16)  # the teacher saw larger pictures
    chosen, wanted = picks(), keypoints(1, teacher)
    logits = [windows(maps, chosen.image, chosen.boxes_cxcywh, SIZE).flatten(2) for maps in (student, teacher)]
    rows = torch.cat([level.flatten(1, 3) for level in wanted.points], 1)[chosen.image, chosen.row].tolist()
    total = 0.0
    for n in range(3):
        for k in range(2):
            weights = [[math.exp(value) for value in maps[n, k].tolist()] for maps in logits]
            found, right = ([weight / sum(some) for weight in some] for some in weights)
            lost = sum(q * math.log(q / p) for p, q in zip(found, right, strict=True))
            total += float(chosen.belief[n]) * lost * probability(rows[n][3 * k + 2]) / 2
    assert of_maps(keypoints(0, student), wanted, chosen) == pytest.approx(total / 2.1, rel=1e-3)


def test_equal_heatmaps_cost_nothing_and_pull_nowhere() -> None:
    maps = torch.randn(2, 2, 8, 8).requires_grad_()
    student, teacher = keypoints(0, maps), keypoints(0, maps.detach().clone())
    loss = keypoint_divergence(student, teacher, picks(), SIZE, SIGMAS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert maps.grad is not None
    assert float(maps.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("with_maps", [True, False])
def test_what_a_teacher_does_not_see_its_heatmaps_do_not_teach(with_maps: bool) -> None:
    torch.manual_seed(0)
    student = keypoints(0, torch.randn(2, 2, 8, 8))
    maps = torch.randn(2, 2, 8, 8) if with_maps else None
    assert of_maps(student, keypoints(0, maps, 20.0), picks()) > 0.1
    assert of_maps(student, keypoints(0, maps, -20.0), picks()) == pytest.approx(0, abs=1e-6)


def test_points_of_a_teacher_without_heatmaps_are_bumps_to_learn() -> None:
    """Nothing is left to learn where a map holds the bumps themselves: of a picture that is one box's window."""
    size = (48, 72)
    whole = Picks(
        torch.tensor([0]), torch.tensor([3]), torch.tensor([0.9]), torch.tensor([[36.0, 24, 72 / REACH, 48 / REACH]])
    )
    teacher = keypoints(0, None, 20.0)
    for level in teacher.points:
        level[..., :2], level[..., 3:5] = 0.1, -0.2
    sides = whole.boxes_cxcywh[:, None, 2:]
    points = whole.boxes_cxcywh[:, None, :2] + torch.tensor([[[0.1, 0.1], [-0.2, -0.2]]]) * sides
    bumps = place(points, whole.boxes_cxcywh, SIGMAS, LABEL_SPREAD).bumps().view(1, 2, CELLS, CELLS)
    right, flat = (keypoints(1, maps.expand(2, -1, -1, -1)) for maps in (bumps, torch.zeros_like(bumps)))
    assert of_maps(right, teacher, whole, size) == pytest.approx(0, abs=1e-4)
    assert of_maps(flat, teacher, whole, size) > 0.5


def test_confident_rows_are_those_above_a_quarter_with_their_decoded_boxes() -> None:
    teacher = torch.full((2, 160, 5 + CLASSES), -8.0)
    teacher[0, 9, 4:6] = 8.0
    teacher[1, 135, 4] = 8.0
    teacher[1, 135, 6] = 8.0
    teacher[1, 135, :4] = 0.0
    teacher[1, 20, 4], teacher[1, 20, 5] = 0.0, -2.0
    levels, start = [], 0
    for height, width in LAYOUT.shapes(SIZE):
        count = len(LAYOUT.anchors[0]) * height * width
        rows = teacher[:, start : start + count]
        levels.append(rows.unflatten(1, (len(LAYOUT.anchors[0]), height, width)))
        start += count
    found = confident(levels, geometry(LAYOUT, SIZE))
    assert found.image.tolist() == [0, 1]
    assert found.row.tolist() == [9, 135]
    # Row 135: the second level (after 128 rows), first anchor, cell 7 of a 4 x 4 map: column 3, row 1.
    assert found.boxes_cxcywh[1].tolist() == pytest.approx([56.0, 24.0, 30.0, 61.0])
