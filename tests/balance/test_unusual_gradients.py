"""Aggregators on gradients that are small, and beside a loss that does not look at the shared features."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mtyolo.balance import AGGREGATORS, make_balancer

NEEDS = {"upgrad": "quadprog", "dualproj": "quadprog", "cagrad": "cvxpy", "fairgrad": "scipy"}
CONFLICTING = [[3.0, 0.0], [-1.0, 1.0]]
AGREEING = [[1.0, 0.5], [0.5, 1.0]]
SMALL = 1e-3


def shared_gradient(word: str, rows: Sequence[Sequence[float]], beside: bool = False) -> Tensor:
    """What reaches the one shared parameter from losses with these gradients. beside: and one more without any."""
    if word in NEEDS:
        pytest.importorskip(NEEDS[word])
    torch.manual_seed(0)
    trunk, other = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    features = trunk * 1.0
    losses = {str(number): torch.tensor(row) @ features + 1 for number, row in enumerate(rows)}
    if beside:
        losses["align"] = 1 + other.sum()
    make_balancer(word, tuple(losses)).backward(losses, [features], 1.0)
    assert trunk.grad is not None
    assert not beside or (other.grad is not None and float(other.grad) == 1.0)
    return trunk.grad


@pytest.mark.parametrize("word", sorted(AGGREGATORS))
def test_a_loss_that_does_not_see_the_shared_features_leaves_the_others_their_step(word: str) -> None:
    found = shared_gradient(word, AGREEING, beside=True)
    assert found.isfinite().all()
    assert all(float(found @ torch.tensor(row)) > 0 for row in AGREEING)


@pytest.mark.parametrize("word", sorted(set(AGGREGATORS) - {"fairgrad"}))
def test_small_gradients_are_aggregated_like_large_ones(word: str) -> None:
    """All but FairGrad, whose weights are the inverse of the gradients' size, give in proportion."""
    small = shared_gradient(word, [[SMALL * value for value in row] for row in CONFLICTING])
    assert (small / SMALL).tolist() == pytest.approx(shared_gradient(word, CONFLICTING).tolist(), rel=0.02, abs=0.01)


def test_losses_that_all_leave_the_shared_features_alone_are_their_own_step() -> None:
    trunk, others = torch.zeros(2, requires_grad=True), [torch.zeros(1, requires_grad=True) for _ in range(2)]
    features = trunk * 1.0
    losses = {str(number): 1 + other.sum() + 0 * features.sum() for number, other in enumerate(others)}
    assert make_balancer("pcgrad", tuple(losses)).backward(losses, [features], 2.0) == {"0": 1.0, "1": 1.0}
    assert [other.grad for other in others] == [torch.tensor([2.0])] * 2
