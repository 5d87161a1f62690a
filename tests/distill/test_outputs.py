"""Losses between raw outputs against loops in plain Python, and their limit cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtyolo.distill.layout import Layout, geometry
from mtyolo.distill.outputs import (
    Groups,
    Picks,
    bernoulli_divergence,
    bernoulli_kl,
    confident,
    keypoint_divergence,
    logit_mse,
    mask_divergence,
    objectness_scaled,
    soft_bce,
)
from mtyolo.structures import MaskOutputs

BATCH, ROWS, CLASSES = 2, 7, 3
GROUPS = Groups(box=0.5, objectness=2.0, classes=1.5)
RowLoss = Callable[[Tensor, Tensor], Tensor]


def rows(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(BATCH, ROWS, 5 + CLASSES, generator=generator, dtype=torch.float64)


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def entropy_like(wanted: float, found: float) -> float:
    """-wanted ln found - (1 - wanted) ln(1 - found)"""
    return -wanted * math.log(found) - (1 - wanted) * math.log(1 - found)


def divergence(student: float, teacher: float) -> float:
    wanted = probability(teacher)
    return entropy_like(wanted, probability(student)) - entropy_like(wanted, wanted)


def brute_force(student: Tensor, teacher: Tensor, value: Callable[[float, float], float]) -> float:
    """Mean of each group over images, rows and its columns, weighted and added."""
    total = 0.0
    for columns, weight in zip((range(4), range(4, 5), range(5, 5 + CLASSES)), GROUPS, strict=True):
        found = [
            value(float(student[image, row, column]), float(teacher[image, row, column]))
            for image in range(BATCH)
            for row in range(ROWS)
            for column in columns
        ]
        total += weight * sum(found) / len(found)
    return total


def test_logit_mse_agrees_with_a_loop() -> None:
    expected = brute_force(rows(0), rows(1), lambda student, teacher: (student - teacher) ** 2)
    assert float(logit_mse(rows(0), rows(1), GROUPS)) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_bernoulli_kl_agrees_with_a_loop(temperature: float) -> None:
    expected = temperature**2 * brute_force(
        rows(0), rows(1), lambda student, teacher: divergence(student / temperature, teacher / temperature)
    )
    assert float(bernoulli_kl(rows(0), rows(1), temperature, GROUPS)) == pytest.approx(expected)


def test_soft_bce_agrees_with_a_loop() -> None:
    expected = brute_force(
        rows(0), rows(1), lambda student, teacher: entropy_like(probability(teacher), probability(student))
    )
    assert float(soft_bce(rows(0), rows(1), GROUPS)) == pytest.approx(expected)


def test_objectness_scaled_agrees_with_a_loop() -> None:
    student, teacher = rows(0), rows(1)
    belief = [[probability(float(teacher[i, r, 4])) for r in range(ROWS)] for i in range(BATCH)]
    total = 0.0
    for image in range(BATCH):
        for row in range(ROWS):
            each = [
                divergence(float(student[image, row, c]), float(teacher[image, row, c])) for c in range(5 + CLASSES)
            ]
            total += GROUPS.objectness * each[4]
            total += belief[image][row] * (GROUPS.box * sum(each[:4]) + GROUPS.classes * sum(each[5:]))
    expected = total / sum(sum(image) for image in belief)
    assert float(
        objectness_scaled([student[:, :3], student[:, 3:]], [teacher[:, :3], teacher[:, 3:]], GROUPS)
    ) == pytest.approx(expected)


ROW_LOSSES: dict[str, RowLoss] = {
    "mse": logit_mse,
    "kl": bernoulli_kl,
    "kl at 4": lambda student, teacher: bernoulli_kl(student, teacher, 4.0),
    "scaled": lambda student, teacher: objectness_scaled([student], [teacher]),
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_equal_outputs_cost_nothing_and_pull_nowhere(name: str) -> None:
    student = rows(0).requires_grad_()
    loss = ROW_LOSSES[name](student, rows(0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


def test_soft_bce_of_equal_outputs_is_the_entropy_and_pulls_nowhere() -> None:
    student = rows(0).requires_grad_()
    loss = soft_bce(student, rows(0))
    loss.backward()
    expected = brute_force(rows(0), rows(0), lambda s, t: entropy_like(probability(t), probability(s)))
    unweighted = soft_bce(rows(0), rows(0), GROUPS)
    assert float(unweighted) == pytest.approx(expected)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


def test_soft_bce_and_kl_at_one_have_the_same_gradient() -> None:
    gradients = []
    for loss in (soft_bce, bernoulli_kl):
        student = rows(0).requires_grad_()
        loss(student, rows(1)).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients)


def test_a_very_high_temperature_leaves_an_eighth_of_the_squared_difference() -> None:
    assert float(bernoulli_kl(rows(0), rows(1), 1e4)) == pytest.approx(float(logit_mse(rows(0), rows(1))) / 8, rel=1e-5)


def test_a_very_low_temperature_leaves_only_decisions() -> None:
    """T KL -> max(0, z) of the student where the teacher says no, max(0, -z) where it says yes."""
    student, teacher, temperature = torch.tensor([2.0, -3.0, 1.5]), torch.tensor([-1.0, 4.0, 0.5]), 1e-3
    found = temperature * bernoulli_divergence(student / temperature, teacher / temperature)
    assert found.tolist() == pytest.approx([2.0, 3.0, 0.0], abs=1e-3)


def test_extreme_logits_stay_finite() -> None:
    found = bernoulli_divergence(torch.tensor([1e4, -1e4, 1e4]), torch.tensor([-1e4, 1e4, 1e4]))
    assert found.tolist() == pytest.approx([1e4, 1e4, 0])


def test_background_teaches_neither_box_nor_class() -> None:
    student, teacher = rows(0).requires_grad_(), rows(1)
    teacher[..., 4] = -20
    objectness_scaled([student], [teacher]).backward()
    assert student.grad is not None
    assert float(student.grad[..., [0, 1, 2, 3, 5, 6, 7]].abs().max()) == 0
    assert float(student.grad[..., 4].abs().min()) > 0


def test_gradients_of_scaled_are_differences_of_probabilities_in_maps_of_any_memory_order() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(2, 3 * 8, 4, 5, generator=generator) for _ in range(2)]
    plain, last = raw[0].clone(), raw[0].to(memory_format=torch.channels_last)
    teacher = raw[1].unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2)
    teacher[0, ..., 4] = -20.0  # an image of background: most rows are not picked
    belief = teacher[..., 4:5].sigmoid()
    weights = torch.cat((GROUPS.box * belief.expand(-1, -1, -1, -1, 4), torch.full_like(belief, GROUPS.objectness)), -1)
    weights = torch.cat((weights, GROUPS.classes * belief.expand(-1, -1, -1, -1, 3)), -1)
    for leaf in (plain.requires_grad_(), last.requires_grad_()):
        student = leaf.unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2)
        objectness_scaled([student], [teacher], GROUPS).backward()
        expected = weights * (student.detach().sigmoid() - teacher.sigmoid()) / belief.sum()
        assert leaf.grad is not None
        found = leaf.grad.unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


SIZE = (64, 64)
LAYOUT = Layout((8, 16), torch.tensor([[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]))


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
    assert float(keypoint_divergence(student, teacher, chosen, sigmas)) == pytest.approx(total / 2.1, rel=1e-4)


def test_equal_keypoints_cost_nothing_and_pull_nowhere() -> None:
    student = torch.randn(2, 160, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = keypoint_divergence(student, student.detach().clone(), picks(), torch.tensor([0.05, 0.1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


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
