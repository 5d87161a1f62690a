"""Losses between features against loops in plain Python, and their limit cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mtyolo.distill.features import (
    FEATURE_LOSSES,
    ChannelAttention,
    ChannelWise,
    FitNets,
    MaskedGeneration,
    Relative,
    SpatialAttention,
    make_projector,
    pooled,
    resized,
)

BATCH, CHANNELS, HEIGHT, WIDTH = 2, 3, 4, 5
SIMPLE = ("fitnets", "relative", "spatial", "channel", "cwd")
"""Without anything random or generated."""


def features(seed: int, channels: int = CHANNELS, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    return torch.randn(BATCH, channels, *size, generator=torch.Generator().manual_seed(seed))


def normalised(values: list[float]) -> list[float]:
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def mean_square(first: list[list[float]], second: list[list[float]]) -> float:
    squares = [(a - b) ** 2 for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(squares) / len(squares)


def positions() -> list[tuple[int, int]]:
    return [(row, column) for row in range(HEIGHT) for column in range(WIDTH)]


def projected(student: Tensor, loss: nn.Module) -> Tensor:
    """The 1x1 convolution as a sum over channels."""
    (weight,) = loss.parameters()
    out = torch.zeros(BATCH, weight.shape[0], HEIGHT, WIDTH)
    for target in range(weight.shape[0]):
        for source in range(weight.shape[1]):
            out[:, target] += weight[target, source, 0, 0] * student[:, source]
    return out.detach()


def test_fitnets_agrees_with_a_loop_and_projects_channels() -> None:
    loss, student, teacher = FitNets(2, CHANNELS), features(0, 2), features(1)
    found = projected(student, loss)
    squares = [
        float(found[image, c, row, column] - teacher[image, c, row, column]) ** 2
        for image in range(BATCH)
        for c in range(CHANNELS)
        for row, column in positions()
    ]
    assert float(loss(student, teacher).detach()) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_fitnets_gradient_is_that_of_the_mean_square_and_keeps_the_layout() -> None:
    plain, student, teacher = features(0).requires_grad_(), features(0), features(1)
    (3 * nn.functional.mse_loss(plain, teacher)).backward()
    last = student.contiguous(memory_format=torch.channels_last).requires_grad_()
    (3 * FitNets(CHANNELS, CHANNELS)(last, teacher.contiguous(memory_format=torch.channels_last))).backward()
    assert plain.grad is not None
    assert last.grad is not None
    assert torch.allclose(last.grad, plain.grad, rtol=1e-5)
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


def test_a_projector_is_a_convolution() -> None:
    student, projector = features(0, 2), make_projector(2, CHANNELS)
    (weight,) = projector.parameters()
    assert torch.allclose(projector(student), nn.functional.conv2d(student, weight), rtol=1e-5, atol=1e-6)


def test_relative_is_the_squared_error_over_the_teachers_variance_whatever_its_scale() -> None:
    loss, student, teacher = Relative(CHANNELS, CHANNELS), features(0), features(1)
    values = [float(value) for value in teacher.flatten()]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert float(loss(student, teacher)) == pytest.approx(float(FitNets(3, 3)(student, teacher)) / variance, rel=1e-5)
    assert float(loss(30 * student, 30 * teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-5)
    constant = torch.full_like(teacher, mean)
    assert float(loss(constant, teacher)) == pytest.approx(1, abs=0.02), "the mean explains nothing"


def test_spatial_attention_agrees_with_a_loop_whatever_the_channels() -> None:
    def attention(tensor: Tensor) -> list[list[float]]:
        return [
            normalised([sum(float(value) ** 2 for value in one[:, row, column]) for row, column in positions()])
            for one in tensor
        ]

    student, teacher = features(0, 2), features(1, 6)
    expected = mean_square(attention(student), attention(teacher))
    assert float(SpatialAttention(2, 6)(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_spatial_attention_sees_where_and_not_only_how_much() -> None:
    """A map and its mirror image have equal channel statistics: a loss on means would be blind."""
    student = features(0)
    assert float(SpatialAttention(CHANNELS, CHANNELS)(student, student.flip(-1))) > 1e-3
    assert float(ChannelAttention(CHANNELS, CHANNELS)(student, student.flip(-1))) < 1e-12


def test_channel_attention_agrees_with_a_loop() -> None:
    def attention(tensor: Tensor) -> list[list[float]]:
        return [
            normalised([sum(float(one[c, row, column]) for row, column in positions()) / 20 for c in range(CHANNELS)])
            for one in tensor
        ]

    loss, student, teacher = ChannelAttention(2, CHANNELS), features(0, 2), features(1)
    expected = mean_square(attention(projected(student, loss)), attention(teacher))
    assert float(loss(student, teacher).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_agrees_with_a_loop(temperature: float) -> None:
    def distribution(channel: Tensor) -> list[float]:
        powers = [math.exp(float(channel[row, column]) / temperature) for row, column in positions()]
        return [power / sum(powers) for power in powers]

    student, teacher = features(0), features(1)
    total = 0.0
    for image in range(BATCH):
        for c in range(CHANNELS):
            pairs = zip(distribution(teacher[image, c]), distribution(student[image, c]), strict=True)
            total += sum(wanted * math.log(wanted / found) for wanted, found in pairs)
    expected = temperature**2 * total / CHANNELS / BATCH
    loss = ChannelWise(CHANNELS, CHANNELS, temperature)
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_channel_wise_does_not_mind_a_shift_of_a_channel() -> None:
    student = features(0)
    assert float(ChannelWise(CHANNELS, CHANNELS)(student + 5, student)) == pytest.approx(0, abs=1e-5)


def test_masked_generation_agrees_with_a_loop_over_the_positions_that_are_shown() -> None:
    loss, student, teacher = MaskedGeneration(CHANNELS, CHANNELS), features(0), features(1)
    torch.manual_seed(3)
    found = float(loss(student, teacher).detach())
    torch.manual_seed(3)
    drawn = torch.rand(BATCH, 1, HEIGHT, WIDTH)
    hidden = student.clone()
    for image in range(BATCH):
        for row, column in positions():
            if float(drawn[image, 0, row, column]) < 0.65:
                hidden[image, :, row, column] = 0
    made = loss.generator(hidden).detach()
    expected = sum(float((made[image] - teacher[image]).square().sum()) for image in range(BATCH)) / BATCH
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("own", [2, 5], ids=["fewer channels", "more channels"])
def test_masked_generation_generates_from_projected_features(own: int) -> None:
    """However they are multiplied; and what is learned gets the same derivatives."""
    loss = MaskedGeneration(own, CHANNELS).double()
    student, teacher = (
        torch.cat((features(seed, channels), features(2 + seed, channels)[:1])).double()
        for seed, channels in enumerate((own, CHANNELS))
    )
    student.requires_grad_()
    torch.manual_seed(3)
    found = loss(student, teacher)
    torch.manual_seed(3)
    shown = torch.rand(3, 1, HEIGHT, WIDTH) >= 0.65
    made = loss.generator(loss.projector(student) * shown)
    wanted = (made - teacher).square().sum() / 3
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    learned = [student, *loss.parameters()]
    for one, other in zip(torch.autograd.grad(found, learned), torch.autograd.grad(wanted, learned), strict=True):
        torch.testing.assert_close(one, other)


def test_masked_generation_of_everything_hidden_does_not_see_the_student() -> None:
    loss = MaskedGeneration(CHANNELS, CHANNELS, masked=1.1)
    assert torch.equal(loss(features(0), features(2)), loss(features(1), features(2)))


def test_masked_generation_that_can_pass_all_on_costs_nothing_for_equal_maps() -> None:
    loss = MaskedGeneration(CHANNELS, CHANNELS, masked=0.0)
    student = features(0).abs()  # the generator's rectifier keeps what is positive
    with torch.no_grad():
        for layer in (loss.generator[0], loss.generator[2]):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
    student.requires_grad_()
    value = loss(student, student.detach())
    value.backward()
    assert float(value.detach()) == 0
    assert student.grad is not None
    assert float(student.grad.abs().max()) == 0


@pytest.mark.parametrize("name", SIMPLE)
def test_equal_features_cost_nothing_and_pull_nowhere(name: str) -> None:
    student = features(0).requires_grad_()
    loss = FEATURE_LOSSES[name](CHANNELS, CHANNELS)(student, student.detach().clone())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("name", [*SIMPLE, "mgd"])
def test_channels_and_sizes_may_differ_and_the_student_learns(name: str) -> None:
    student = features(0, 2, (3, 3)).requires_grad_()
    FEATURE_LOSSES[name](2, 5)(student, features(1, 5, (6, 6))).backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) > 0


def test_a_resized_map_of_one_value_keeps_it() -> None:
    found = resized(torch.full((1, 1, 3, 3), 2.5), torch.zeros(1, 7, 6, 4))
    assert found.shape == (1, 1, 6, 4)
    assert found.unique().tolist() == [2.5]


def test_pooled_positions_are_means_of_those_that_are_there() -> None:
    maps = features(0)
    found = pooled(maps, 2)
    assert found.shape == (BATCH, CHANNELS, HEIGHT // 2, 3)
    for row in range(HEIGHT // 2):
        for column in range(3):
            there = [(2 * row + y, 2 * column + x) for y in (0, 1) for x in (0, 1) if 2 * column + x < WIDTH]
            mean = sum(maps[:, :, y, x] for y, x in there) / len(there)
            assert torch.allclose(found[:, :, row, column], torch.as_tensor(mean), atol=1e-6)
    assert pooled(maps, 1) is maps
