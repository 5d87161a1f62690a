"""Gradients compared by what they are made of, against the maps that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.distill.features import GradientSimilarity
from mtyolo.distill.low_rank import LowRank, angle

IMAGES, POSITIONS, CHANNELS, WIDER = 3, 20, 4, 6


def some(seed: int, channels: int = CHANNELS, directions: int = 3) -> LowRank:
    """Five places, two of them the same, three of all that are drawn with any seed."""
    chance = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    places = torch.tensor([7, 41, 22, 41, 1 + seed % POSITIONS])
    return LowRank(random(IMAGES, POSITIONS, directions), random(directions, channels), places, random(5, channels))


def written_out(maps: LowRank) -> Tensor:
    """[B, H*W, C]."""
    whole = maps.amounts @ maps.directions
    flat = list(whole.flatten(0, 1).unbind())
    for place, row in zip(maps.places.tolist(), maps.rows, strict=True):
        flat[place] = flat[place] + row
    return torch.stack(flat).view_as(whole)


def plain_angle(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))).mean()


def learning(maps: LowRank) -> tuple[LowRank, list[Tensor]]:
    parts = [part.requires_grad_() for part in (maps.amounts, maps.directions, maps.rows)]
    return maps, parts


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("directions", [1, 3])
def test_value_and_derivatives_are_those_of_whole_maps(directions: int, projected: bool) -> None:
    """The two may have other numbers of anchors, and matches elsewhere."""
    loss = GradientSimilarity(CHANNELS, WIDER if projected else CHANNELS).double()
    weight = loss.projector.weight.flatten(1) if projected else torch.eye(CHANNELS, dtype=torch.float64)  # type: ignore[operator, union-attr]
    student, parts = learning(some(0))
    teacher = some(1, WIDER if projected else CHANNELS, directions)
    found = loss(student, teacher)
    wanted = plain_angle(F.linear(written_out(student), weight), written_out(teacher))  # type: ignore[arg-type]
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    learned = [*parts, *loss.parameters()]
    for one, other in zip(torch.autograd.grad(found, learned), torch.autograd.grad(wanted, learned), strict=True):
        torch.testing.assert_close(one, other)


def test_the_same_costs_nothing_and_pulls_nowhere_and_the_opposite_costs_two() -> None:
    student, parts = learning(some(0))
    same = LowRank(*(part.detach() for part in student))
    found = angle(student, same)
    assert float(found.detach()) == pytest.approx(0, abs=1e-12)
    assert all(float(one.abs().max()) < 1e-12 for one in torch.autograd.grad(found, parts))
    turned = same._replace(directions=-3 * same.directions, rows=-3 * same.rows)
    assert float(angle(student, turned).detach()) == pytest.approx(2)


@pytest.mark.parametrize("empty", ["student", "teacher"])
def test_images_that_have_none_do_not_count(empty: str) -> None:
    def without_the_first(maps: LowRank) -> LowRank:
        maps.amounts[0] = 0
        maps.rows[maps.places < POSITIONS] = 0
        return maps

    student, teacher = (
        without_the_first(some(seed)) if name == empty else some(seed)
        for seed, name in enumerate(("student", "teacher"))
    )
    student, parts = learning(student)
    found = angle(student, teacher)
    wanted = plain_angle(written_out(student)[1:], written_out(teacher)[1:])
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    pulls = torch.autograd.grad(found, parts)
    assert not pulls[0][0].any()
    assert all(pull.isfinite().all() and pull.any() for pull in pulls)


def test_small_ones_are_compared_as_large_ones() -> None:
    """A level without a match, and background that is sure of itself."""

    def scaled(maps: LowRank, factor: float) -> LowRank:
        return LowRank(maps.amounts.float() * factor, maps.directions.float(), maps.places, maps.rows.float() * factor)

    (large, parts), (small, small_parts) = learning(scaled(some(0), 1)), learning(scaled(some(0), 1e-12))
    found, wanted = angle(small, scaled(some(1), 1e-12)), angle(large, scaled(some(1), 1))
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    pulls = zip(
        torch.autograd.grad(found, small_parts), torch.autograd.grad(wanted, parts), (1e-12, 1, 1e-12), strict=True
    )
    for one, other, factor in pulls:
        torch.testing.assert_close(one * factor, other, rtol=1e-3, atol=1e-5)


def test_where_no_image_has_any_nothing_is_asked() -> None:
    student, parts = learning(LowRank(*(part * 0 for part in some(0))))
    found = angle(student, some(1))
    assert float(found.detach()) == 0
    assert not any(pull.any() for pull in torch.autograd.grad(found, parts))


def test_autocast_rounds_nothing() -> None:
    student, teacher = (
        LowRank(*(part.float() if part.is_floating_point() else part for part in some(seed))) for seed in range(2)
    )
    loss = GradientSimilarity(CHANNELS, CHANNELS)
    exact = loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, teacher), exact)
