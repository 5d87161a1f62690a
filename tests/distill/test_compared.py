"""Comparing on the way through a projector against the projection, the loss and the gradient one after the other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.distill.compared import Spread, channel_divergence, mean_square, relative_error

BATCH, CHANNELS, WIDER, SIDE = 3, 4, 6, (5, 7)

Comparison = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def plain_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    found, wanted = (maps.flatten(2).log_softmax(2) for maps in (student, teacher))
    return (wanted.exp() * (wanted - found)).sum() / (student.shape[0] * student.shape[1])


PLAIN: dict[str, tuple[Comparison, Callable[[Tensor, Tensor], Tensor]]] = {
    "mean square": (mean_square, F.mse_loss),
    "relative": (relative_error, lambda student, teacher: F.mse_loss(student, teacher) / teacher.var()),
    "divergence": (channel_divergence, plain_divergence),
}


def maps(seed: int, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    found = 2 * torch.randn(BATCH, channels, *SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (found + 1).to(dtype).contiguous(memory_format=torch.channels_last)


def projector() -> Tensor:
    return torch.randn(WIDER, CHANNELS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("projected", [False, True])
def test_value_and_both_derivatives_are_those_of_one_step_after_the_other(name: str, projected: bool) -> None:
    compare, plain = PLAIN[name]
    teacher = maps(1, WIDER if projected else CHANNELS)
    inputs = [[maps(0, CHANNELS).requires_grad_(), projector().requires_grad_()] for _ in range(2)]
    (student, weight), (other, other_weight) = inputs
    found = compare(student, teacher, weight if projected else None)
    wanted = plain(F.conv2d(other, other_weight[..., None, None]) if projected else other, teacher)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    (3 * found).backward()
    (3 * wanted).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, other.grad)
    assert student.grad.is_contiguous(memory_format=torch.channels_last)
    if projected:
        torch.testing.assert_close(weight.grad, other_weight.grad)


@pytest.mark.parametrize("name", PLAIN)
def test_differentiating_again_gives_the_same(name: str) -> None:
    """As balancers do, which look at a loss's gradient before they decide on its weight."""
    student, weight = maps(0, CHANNELS).requires_grad_(), projector().requires_grad_()
    loss = PLAIN[name][0](student, maps(1, WIDER), weight)
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, [student, weight], retain_graph=True)]
    (2 * loss).backward(retain_graph=True)
    loss.backward()
    for once, thrice in zip(first, (student.grad, weight.grad), strict=True):
        torch.testing.assert_close(3 * once, thrice)


@pytest.mark.parametrize("name", PLAIN)
def test_neither_map_is_written_to(name: str) -> None:
    student, teacher = maps(0, CHANNELS, torch.float32).requires_grad_(), maps(1, CHANNELS, torch.float32)
    kept = student.detach().clone(), teacher.clone()
    PLAIN[name][0](student, teacher, None).backward()
    assert torch.equal(student.detach(), kept[0])
    assert torch.equal(teacher, kept[1])


@pytest.mark.parametrize("name", PLAIN)
def test_a_teacher_in_half_precision_is_compared_in_single(name: str) -> None:
    student, teacher = maps(0, CHANNELS, torch.float32).requires_grad_(), maps(1, CHANNELS, torch.float16)
    found, exact = (PLAIN[name][0](student, given, None) for given in (teacher, teacher.float()))
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), exact.detach())
    assert torch.equal(*(torch.autograd.grad(loss, student)[0] for loss in (found, exact)))


@pytest.mark.parametrize("name", PLAIN)
def test_autocast_rounds_nothing(name: str) -> None:
    def found() -> list[Tensor]:
        student, weight = maps(0, CHANNELS, torch.float32).requires_grad_(), projector().float().requires_grad_()
        loss = PLAIN[name][0](student, maps(1, WIDER, torch.float32), weight)
        first = torch.autograd.grad(loss, [student, weight], retain_graph=True)
        return [loss.detach(), *first, *torch.autograd.grad(loss, [student, weight])]

    exact = found()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, found(), exact))


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_that_is_dropped_lets_go_of_the_teacher(name: str) -> None:
    """As that of a batch that is not finite; the collector of cycles counts objects, not their size."""
    student, teacher = maps(0, CHANNELS).requires_grad_(), maps(1, CHANNELS)
    gone = weakref.ref(teacher)
    gc.disable()
    try:
        loss = PLAIN[name][0](student, teacher, None)
        assert loss.requires_grad
        del loss, teacher
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_divergence_sees_no_offset_of_a_channel(offset: int) -> None:
    """A tiny difference is neither lost beside it, nor negative."""
    teacher = maps(0, CHANNELS)
    student = teacher + offset + 0.01 * maps(1, CHANNELS)
    exact = float(plain_divergence(student, teacher))
    assert float(channel_divergence(student.float(), teacher.float())) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", PLAIN)
def test_threads_share_images_and_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(threads: int) -> list[Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        student, weight = maps(0, CHANNELS).requires_grad_(), projector().requires_grad_()
        loss = PLAIN[name][0](student, maps(1, WIDER), weight)
        return [loss.detach(), *torch.autograd.grad(loss, [student, weight])]

    for one, two in zip(found(1), found(2), strict=True):
        torch.testing.assert_close(one, two)


def test_spread_of_uneven_parts_is_the_variance_even_far_from_zero() -> None:
    values = 1000 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    spread = Spread()
    for part in values.split([700, 200, 100]):
        spread.add(part)
    assert float(spread.variance) == pytest.approx(float(values.double().var()), rel=1e-4)
