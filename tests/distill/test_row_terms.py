"""Losses between raw rows against loops in plain Python, and their limit cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtyolo.distill.row_terms import (
    BLOCK,
    Groups,
    bernoulli_divergence,
    bernoulli_kl,
    logit_mse,
    objectness_scaled,
    soft_bce,
)

BATCH, ROWS, CLASSES = 2, 7, 3
GROUPS = Groups(box=0.5, objectness=2.0, classes=1.5)
RowLoss = Callable[[list[Tensor], list[Tensor]], Tensor]


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
    assert float(logit_mse([rows(0)], [rows(1)], GROUPS)) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_bernoulli_kl_agrees_with_a_loop(temperature: float) -> None:
    expected = temperature**2 * brute_force(
        rows(0), rows(1), lambda student, teacher: divergence(student / temperature, teacher / temperature)
    )
    assert float(bernoulli_kl([rows(0)], [rows(1)], temperature, GROUPS)) == pytest.approx(expected)


def test_soft_bce_agrees_with_a_loop() -> None:
    expected = brute_force(
        rows(0), rows(1), lambda student, teacher: entropy_like(probability(teacher), probability(student))
    )
    assert float(soft_bce([rows(0)], [rows(1)], GROUPS)) == pytest.approx(expected)


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
    "scaled": objectness_scaled,
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_equal_outputs_cost_nothing_and_pull_nowhere(name: str) -> None:
    student = rows(0).requires_grad_()
    loss = ROW_LOSSES[name]([student], [rows(0)])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


@pytest.mark.parametrize("name", [*ROW_LOSSES, "soft"])
def test_logits_beyond_all_sense_stay_finite(name: str) -> None:
    student = (
        torch.tensor([-1000.0, -100.0, 0.0, 100.0, 1000.0])[None, :, None].expand(1, 5, 8).clone().requires_grad_()
    )
    loss = (ROW_LOSSES | {"soft": soft_bce})[name]([student], [student.detach().flip(1)])
    loss.backward()
    assert bool(loss.detach().isfinite())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("gap", [0.03, 0.3, 1.0, 20.0, 60.0])
@pytest.mark.parametrize("sure", [-15.0, -10.0, 0.0, 10.0])
def test_divergence_in_single_precision_is_that_in_double_to_a_ten_millionth(gap: float, sure: float) -> None:
    student = torch.full((1, 3, 8), sure, dtype=torch.float64, requires_grad=True)
    single = student.detach().float().requires_grad_()
    for values in (student, single):
        bernoulli_kl([values], [values.detach() + gap]).backward()
    expected, found = (bernoulli_kl([values.detach()], [values.detach() + gap]) for values in (student, single))
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert student.grad is not None
    torch.testing.assert_close(single.grad, student.grad.float(), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("loss", [bernoulli_kl, soft_bce])
@pytest.mark.parametrize("logit", [-14.0, -10.0, -5.0, 0.0])
def test_where_an_object_is_unlikely_small_differences_still_pull_the_right_way(loss: RowLoss, logit: float) -> None:
    """Nearly all logits of a detector lie there; seen as 1 - 0.99999, their differences drown."""
    student = torch.linspace(logit - 0.5, logit + 0.5, 24, dtype=torch.float64).view(1, 3, 8)
    slopes = []
    for values in (student.requires_grad_(), student.detach().float().requires_grad_()):
        loss([values], [values.detach() + 0.01]).backward()
        slopes.append(values.grad)
    torch.testing.assert_close(slopes[1].double(), slopes[0], rtol=2e-3, atol=0.0)


def test_soft_bce_of_equal_outputs_is_the_entropy_and_pulls_nowhere() -> None:
    student = rows(0).requires_grad_()
    loss = soft_bce([student], [rows(0)])
    loss.backward()
    expected = brute_force(rows(0), rows(0), lambda s, t: entropy_like(probability(t), probability(s)))
    unweighted = soft_bce([rows(0)], [rows(0)], GROUPS)
    assert float(unweighted) == pytest.approx(expected)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


def test_soft_bce_and_kl_at_one_have_the_same_gradient() -> None:
    gradients = []
    for loss in (soft_bce, bernoulli_kl):
        student = rows(0).requires_grad_()
        loss([student], [rows(1)]).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients)


def test_a_very_high_temperature_leaves_an_eighth_of_the_squared_difference() -> None:
    assert float(bernoulli_kl([rows(0)], [rows(1)], 1e4)) == pytest.approx(
        float(logit_mse([rows(0)], [rows(1)])) / 8, rel=1e-5
    )


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


def by_autograd(kind: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The same losses, as their definitions read, differentiated by autograd."""
    wanted = teacher.sigmoid()
    each = {
        "mse": lambda: (student - teacher) ** 2,
        "kl at 4": lambda: 16 * bernoulli_divergence(student / 4, teacher / 4),
        "soft": lambda: -wanted * student.sigmoid().log() - (1 - wanted) * (1 - student.sigmoid()).log(),
    }[kind]()
    box, objectness, classes = each[..., :4].mean(), each[..., 4].mean(), each[..., 5:].mean()
    return GROUPS.box * box + GROUPS.objectness * objectness + GROUPS.classes * classes


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["mse", "kl at 4", "soft"])
def test_gradients_over_levels_are_those_of_the_definition(kind: str, last: bool) -> None:
    losses: dict[str, Callable[..., Tensor]] = {
        "mse": logit_mse,
        "kl at 4": lambda student, teacher, groups: bernoulli_kl(student, teacher, 4.0, groups),
        "soft": soft_bce,
    }
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last if last else torch.contiguous_format
    leaves, teachers = [], []
    for side in (4, 2):
        raw = [torch.randn(2, 3 * 8, side, side + 1, generator=generator, dtype=torch.float64) for _ in range(2)]
        leaves.append(raw[0].contiguous(memory_format=order).requires_grad_())
        teachers.append(raw[1].unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2))
    students = [leaf.unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2) for leaf in leaves]
    loss = losses[kind](students, teachers, GROUPS)
    found = torch.autograd.grad(3 * loss, leaves)
    joined = [torch.cat([level.flatten(0, 3) for level in maps]) for maps in (students, teachers)]
    expected_loss = by_autograd(kind, *joined)
    expected = torch.autograd.grad(3 * expected_loss, leaves)
    torch.testing.assert_close(loss, expected_loss)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_half_precision_of_saved_outputs_and_of_the_student_is_near_enough(name: str) -> None:
    student, teacher = rows(0).float(), rows(1).half()
    coarse = student.bfloat16().requires_grad_()
    loss = ROW_LOSSES[name]([coarse], [teacher])
    loss.backward()
    exact = student.clone().requires_grad_()
    wanted = ROW_LOSSES[name]([exact], [teacher.float()])
    wanted.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    assert coarse.grad is not None
    assert exact.grad is not None
    assert coarse.grad.dtype == torch.bfloat16
    assert float((coarse.grad.float() - exact.grad).norm() / exact.grad.norm()) < 0.02


@pytest.mark.parametrize("rows", [BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 3])
def test_many_rows_cost_what_the_definition_says_and_pull_as_its_gradient(rows: int) -> None:
    """They are worked on in blocks, the last one smaller."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 1, rows, 7, requires_grad=True), torch.randn(1, 1, 1, rows, 7)
    found = bernoulli_kl([student], [teacher], 2.0)
    (gradient,) = torch.autograd.grad(found, student)
    divergence = 4 * bernoulli_divergence(student / 2, teacher / 2).flatten(0, 3)
    wanted = divergence[:, :4].mean() + divergence[:, 4].mean() + divergence[:, 5:].mean()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.allclose(gradient, torch.autograd.grad(wanted, student)[0], atol=1e-7)


def test_differentiating_again_gives_the_same() -> None:
    """The first one is given the derivative that was made on the way; the next ones have it made again."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 2, 5, 7, requires_grad=True), torch.randn(1, 1, 2, 5, 7)
    loss = bernoulli_kl([student], [teacher], 2.0)
    first, again = (torch.autograd.grad(loss, student, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    assert torch.equal(first, again)
    assert first.data_ptr() != again.data_ptr()


def test_rows_weigh_as_the_teacher_believes_in_them_in_whatever_block_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = objectness_scaled([rows(0)], [rows(1)], GROUPS)
    monkeypatch.setattr("mtyolo.distill.row_terms.BLOCK", 1)
    torch.testing.assert_close(objectness_scaled([rows(0)], [rows(1)], GROUPS), whole)
