"""Aggregators on gradients that are small, and beside a loss that does not look at the shared features."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mtyolo.balance import AGGREGATORS, Balancer, make_balancer

NEEDS = {"upgrad": "quadprog", "dualproj": "quadprog", "cagrad": "cvxpy", "fairgrad": "scipy"}
CONFLICTING = [[3.0, 0.0], [-1.0, 1.0]]
AGREEING = [[1.0, 0.5], [0.5, 1.0]]
SMALL = 1e-3


def shared_gradient(word: str, rows: Sequence[Sequence[float]], *, beside: bool = False, scale: float = 1.0) -> Tensor:
    """What reaches the one shared parameter from losses with these gradients. beside: and one more without any."""
    if word in NEEDS:
        pytest.importorskip(NEEDS[word])
    torch.manual_seed(0)
    trunk, other = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    features = trunk * 1.0
    losses = {str(number): torch.tensor(row) @ features + 1 for number, row in enumerate(rows)}
    if beside:
        losses["align"] = 1 + other.sum()
    make_balancer(word, tuple(losses)).backward(losses, [features], scale)
    assert trunk.grad is not None
    assert not beside or (other.grad is not None and float(other.grad) == scale)
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


AVERAGING = sorted(word for word, method in AGGREGATORS.items() if method.averages)


@pytest.mark.parametrize("word", AVERAGING)
def test_gradients_that_agree_add_up_to_their_sum_whoever_is_absent(word: str) -> None:
    """Each averages; a step is as long as the sum of those that pull, not of all that the plan names."""
    alone = shared_gradient(word, [[1.0, 1.0]], beside=True)
    assert float(alone.norm()) == pytest.approx(2**0.5, rel=0.02 if word != "cagrad" else 0.45)
    pair = shared_gradient(word, [[1.0, 1.0], [1.0, 1.0]], beside=True)
    assert float(pair.norm() / alone.norm()) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("word", sorted(AGGREGATORS))
def test_the_answer_grows_with_the_scale_of_the_whole_gradient(word: str) -> None:
    """As half precision needs: the scale is taken out again after."""
    plain = shared_gradient(word, CONFLICTING)
    scaled = shared_gradient(word, CONFLICTING, scale=65536.0)
    assert (scaled / 65536).tolist() == pytest.approx(plain.tolist(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("word", sorted(AGGREGATORS))
def test_gradients_that_are_not_finite_arrive_as_such(word: str) -> None:
    assert not shared_gradient(word, [[float("inf"), 0.0], [1.0, 1.0]]).isfinite().all()


def test_gradvac_remembers_each_set_of_tasks_and_resumes() -> None:
    def step(balancer: Balancer, rows: dict[str, list[float]]) -> list[float]:
        trunk = torch.zeros(2, requires_grad=True)
        features = trunk * 1.0
        balancer.backward({task: torch.tensor(row) @ features + 1 for task, row in rows.items()}, [features], 1.0)
        assert trunk.grad is not None
        return trunk.grad.tolist()

    three = {"detect": [3.0, 0.0], "segment": [2.0, 1.0], "keypoint": [1.0, 3.0]}
    two = {task: three[task] for task in ("detect", "segment")}
    opposed = three | {"keypoint": [-1.0, 1.0]}
    steady, mixed = make_balancer("gradvac", [*three]), make_balancer("gradvac", [*three])
    for _ in range(3):
        torch.manual_seed(0)
        step(steady, three)
        torch.manual_seed(0)
        step(mixed, three)
        step(mixed, two)
    resumed = make_balancer("gradvac", [*three])
    resumed.load_state_dict(mixed.state_dict())
    answers = []
    for balancer in (steady, mixed, resumed, make_balancer("gradvac", [*three])):
        torch.manual_seed(0)
        answers.append(step(balancer, opposed))
    assert answers[0] == answers[1] == answers[2]
    assert answers[3] != answers[0], "what was remembered matters"


def test_weights_are_said_with_the_plans_own_factors_however_many_tasks_meet() -> None:
    trunk = torch.zeros(2, requires_grad=True)
    features = trunk * 1.0
    losses = {name: torch.tensor(row) @ features + 1 for name, row in zip("ab", AGREEING, strict=True)}
    balancer = make_balancer("pcgrad", ("a", "b"), {"b": 0.5})
    together = balancer.backward(losses, [features], 1.0)
    alone = balancer.backward({"b": torch.tensor(AGREEING[1]) @ (trunk * 1.0) + 1}, [features], 1.0)
    assert together["b"] == alone["b"] == 0.5


def test_the_answer_is_laid_out_as_the_features_are() -> None:
    """As layers under channels_last take it."""
    trunk = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    before = trunk * 1.0
    layouts = []
    before.register_hook(lambda gradient: layouts.append(gradient.stride()))
    features = before * 1.0
    losses = {"detect": features.square().sum(), "segment": features.exp().sum()}
    make_balancer("pcgrad", tuple(losses)).backward(losses, [features], 1.0)
    assert layouts == [trunk.stride()]
    assert trunk.grad is not None
    torch.testing.assert_close(trunk.grad, (2 * trunk + trunk.exp()).detach())
