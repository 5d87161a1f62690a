"""Rows of raw maps: what indexing gives, with a gradient laid out as the convolution wrote the map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtyolo.structures import Matches
from mtyolo.tasks.anchors import at_matches
from mtyolo.tasks.maps import empty_map, match_rows, rows_of
from mtyolo.tasks.rows import gathered, rows_and_column, rows_at

SHAPE = (2, 3, 4, 5, 7)
IMAGE, ANCHOR, ROW, COLUMN = ([0, 1, 1, 0], [2, 0, 0, 2], [3, 1, 1, 3], [4, 0, 0, 2])
"""The second and the third are one cell."""


def raw_map(layout: str = "channels last") -> Tensor:
    convolved = torch.randn(2, 21, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if layout == "channels last":
        convolved = convolved.contiguous(memory_format=torch.channels_last)
    return convolved.unflatten(1, (3, 7)).permute(0, 1, 3, 4, 2).requires_grad_()


def matches() -> Matches:
    places = (torch.tensor(values) for values in (IMAGE, ANCHOR, ROW, COLUMN))
    return Matches(*places, torch.zeros(4, dtype=torch.long), torch.zeros(4, 4))


def by_indexing(level: Tensor) -> Tensor:
    return level[IMAGE, ANCHOR, ROW, COLUMN]


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
def test_values_and_gradients_are_those_of_indexing(layout: str) -> None:
    level, other = raw_map(layout), raw_map(layout)
    cells = match_rows(matches(), level.shape)
    rows, column = rows_and_column(level, cells, 4)
    assert torch.equal(rows, by_indexing(other))
    assert torch.equal(column, rows_of(other)[:, 4])
    weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ((rows * weights).sum() + column.square().sum()).backward()
    ((by_indexing(other) * weights).sum() + other[..., 4].square().sum()).backward()
    assert level.grad is not None
    torch.testing.assert_close(level.grad, other.grad)


def test_rows_alone_are_the_same_rows() -> None:
    level, other = raw_map(), raw_map()
    rows = rows_at(level, match_rows(matches(), level.shape))
    assert torch.equal(rows, by_indexing(other))
    assert torch.equal(at_matches(level, matches()), by_indexing(other).float())
    (gradient,) = torch.autograd.grad(rows.square().sum(), level)
    torch.testing.assert_close(gradient, torch.autograd.grad(by_indexing(other).square().sum(), other)[0])


def test_the_gradient_is_laid_out_as_a_convolution_under_channels_last_writes() -> None:
    level = raw_map()
    (gradient,) = torch.autograd.grad(rows_at(level, match_rows(matches(), level.shape)).sum(), level)
    assert gradient.stride() == level.stride()
    assert rows_of(gradient).data_ptr() == gradient.data_ptr(), "a view, no copy"


def test_without_matches_there_are_no_rows_and_a_gradient_of_zero() -> None:
    level = raw_map()
    rows, column = rows_and_column(level, torch.zeros(0, dtype=torch.long), 4)
    assert rows.shape == (0, 7)
    (gradient,) = torch.autograd.grad(rows.sum() + 0 * column.sum(), level)
    assert not gradient.any()


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
def test_the_gradient_can_itself_be_differentiated(layout: str) -> None:
    cells = match_rows(matches(), SHAPE)

    def function(level: Tensor) -> Tensor:
        rows, column = rows_and_column(level, cells, 4)
        return rows.pow(3).sum() + column.pow(2).sum()

    assert torch.autograd.gradcheck(function, raw_map(layout))
    assert torch.autograd.gradgradcheck(function, raw_map(layout))


def two_losses(level: Tensor, dense: Tensor | None) -> list[Tensor]:
    """As labels and a teacher have them: rows, some by both, a column by each, and perhaps something of all values."""
    taught = torch.tensor([0, 7, 11])
    losses = []
    for cells in (match_rows(matches(), SHAPE), taught):
        rows, column = rows_and_column(level, cells, 4)
        losses.append(rows.pow(3).sum() + column.square().sum())
    return losses if dense is None else [*losses, (level * dense).sum()]


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
@pytest.mark.parametrize("dense", [False, True])
def test_gathered_losses_have_the_gradient_that_they_have_apart(layout: str, dense: bool) -> None:
    level, other = raw_map(layout), raw_map(layout)
    beside = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if dense else None
    kept = None if beside is None else beside.clone()
    (gradient,) = torch.autograd.grad(sum(two_losses(gathered(level), beside)), level)
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(two_losses(other, beside)), other)[0])
    assert gradient.stride() == raw_map().stride()
    assert beside is None or torch.equal(beside, kept)


def test_gathered_losses_can_be_differentiated_one_at_a_time_and_again() -> None:
    level, other = raw_map(), raw_map()
    together, apart = two_losses(gathered(level), None), two_losses(other, None)
    for _ in range(2):
        for found, wanted in zip(together, apart, strict=True):
            (gradient,) = torch.autograd.grad(found, level, retain_graph=True)
            torch.testing.assert_close(gradient, torch.autograd.grad(wanted, other, retain_graph=True)[0])
    assert torch.autograd.gradgradcheck(lambda level: two_losses(gathered(level), None)[0], raw_map())


def test_gathered_rows_make_one_map_of_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("mtyolo.tasks.rows.empty_map", lambda *shape: made.append(shape) or empty_map(*shape))
    level = raw_map()
    sum(two_losses(gathered(level), None)).backward()
    assert len(made) == 1
    sum(two_losses(level, None)).backward()
    assert len(made) == 3
