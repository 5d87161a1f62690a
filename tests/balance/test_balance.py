"""Each word of `balance:` against its definition, computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mtyolo.balance import AGGREGATORS, SCALARIZERS, Balancer, make_balancer
from mtyolo.config.plan import BALANCES
from mtyolo.errors import ConfigError

TASKS = ("detect", "segment")
THREE = (*TASKS, "keypoint")
NEEDS = {"upgrad": "quadprog", "dualproj": "quadprog", "cagrad": "cvxpy", "fairgrad": "scipy"}


class Shared:
    """One shared parameter, from which two or three losses come with known gradients: rows of `jacobian`."""

    def __init__(self, jacobian: list[list[float]]) -> None:
        self.jacobian = torch.tensor(jacobian)
        self.trunk = torch.zeros(self.jacobian.shape[1], requires_grad=True)
        self.heads = torch.zeros(len(jacobian), requires_grad=True)

    def step(self, balancer: Balancer, values: Mapping[str, float], scale: float = 1.0) -> dict[str, float]:
        """Losses of the given values. Their gradient is left in trunk.grad and heads.grad."""
        self.trunk.grad = self.heads.grad = None
        features = self.trunk * 1.0
        losses = {
            task: self.jacobian[number] @ features + self.heads[number] + values[task]
            for number, task in enumerate(THREE)
            if task in values
        }
        return balancer.backward(losses, [features], scale)


def gradient(tensor: Tensor) -> list[float]:
    assert tensor.grad is not None
    return tensor.grad.tolist()


def test_every_word_of_the_schema_has_a_balancer() -> None:
    assert {*SCALARIZERS, *AGGREGATORS, "gradnorm"} == set(BALANCES)


def test_fixed_is_the_weighted_sum() -> None:
    shared = Shared([[1.0, 0.0], [0.0, 1.0]])
    weights = shared.step(make_balancer("fixed", TASKS, {"segment": 3.0}), {"detect": 1.0, "segment": 1.0}, scale=2.0)
    assert weights == {"detect": 1.0, "segment": 3.0}
    assert gradient(shared.trunk) == [2.0, 6.0]


def test_uncertainty_weighs_by_half_the_exponential_and_learns_the_log_of_the_loss() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("uncertainty", TASKS)
    assert shared.step(balancer, {"detect": 2.0, "segment": 0.5}) == {"detect": 0.5, "segment": 0.5}
    for _ in range(400):
        weights = shared.step(balancer, {"detect": 2.0, "segment": 0.5})
    # The minimum of exp(-s) L / 2 + s / 2 is at s = log L, where the weight is 1 / (2 L).
    assert weights["detect"] == pytest.approx(0.25, abs=0.01)
    assert weights["segment"] == pytest.approx(1.0, abs=0.01)


def test_uncertainty_does_not_explode_for_a_loss_of_zero() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("uncertainty", TASKS)
    for _ in range(500):
        weights = shared.step(balancer, {"detect": 1.0, "segment": 0.0})
    assert weights["segment"] == pytest.approx(math.exp(4) / 2, rel=1e-3)


def test_dwa_weighs_by_the_ratio_of_the_last_two_epochs() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("dwa", TASKS)
    for values in ({"detect": 4.0, "segment": 2.0}, {"detect": 2.0, "segment": 2.0}):
        assert shared.step(balancer, values) == {"detect": 1.0, "segment": 1.0}
        balancer.end_epoch()
    weights = shared.step(balancer, {"detect": 2.0, "segment": 2.0})
    first, second = math.exp(0.5 / 2), math.exp(1.0 / 2)
    assert weights["detect"] == pytest.approx(2 * first / (first + second))
    assert weights["segment"] == pytest.approx(2 * second / (first + second))


def test_imtl_l_brings_scaled_losses_to_one() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("imtl-l", TASKS)
    for _ in range(600):
        weights = shared.step(balancer, {"detect": 4.0, "segment": 0.5})
    assert weights["detect"] * 4.0 == pytest.approx(1, abs=0.02)
    assert weights["segment"] * 0.5 == pytest.approx(1, abs=0.02)


def test_random_weights_add_up_to_the_number_of_tasks_and_change() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("random", TASKS)
    torch.manual_seed(0)
    drawn = [shared.step(balancer, {"detect": 1.0, "segment": 1.0}) for _ in range(2)]
    torch.manual_seed(0)
    expected = 2 * torch.softmax(torch.randn(2), 0)
    assert list(drawn[0].values()) == pytest.approx(expected.tolist())
    assert sum(drawn[1].values()) == pytest.approx(2)
    assert drawn[0] != drawn[1]


def test_geometric_mean_weighs_by_its_derivative() -> None:
    shared = Shared([[1.0, 0.0], [0.0, 1.0]])
    weights = shared.step(make_balancer("geometric-mean", TASKS), {"detect": 4.0, "segment": 1.0})
    # sqrt(a b): its derivative by a is sqrt(b / a) / 2
    assert weights == pytest.approx({"detect": 0.25, "segment": 1.0})


def test_famo_moves_weight_to_the_task_that_improves_least() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("famo", TASKS)
    first = shared.step(balancer, {"detect": 1.0, "segment": 1.0})
    assert first == pytest.approx({"detect": 1.0, "segment": 1.0})
    detect = 1.0
    for _ in range(20):
        detect *= 0.9
        weights = shared.step(balancer, {"detect": detect, "segment": 1.0})
    # Weights are z_k / L_k, normalised: take the losses out to see the logits' softmax z.
    assert weights["segment"] * 1.0 > 1.5 * weights["detect"] * detect
    assert sum(weights.values()) == pytest.approx(2)


def test_gradnorm_follows_its_definition() -> None:
    shared, balancer = Shared([[3.0, 0.0], [0.0, 1.0]]), make_balancer("gradnorm", TASKS)
    shared.step(balancer, {"detect": 1.0, "segment": 1.0})
    # Norms 3 and 1, equal rates: the target of both is 2, so w_1 falls and w_2 rises by one Adam step each (0.025),
    # then both are scaled to add up to 2.
    state = balancer.state_dict()["weights"]
    assert state.tolist() == pytest.approx([0.975, 1.025], abs=1e-4)
    for _ in range(400):
        shared.step(balancer, {"detect": 1.0, "segment": 1.0})
    # At rest w_1 * 3 = w_2 * 1.
    assert balancer.state_dict()["weights"].tolist() == pytest.approx([0.5, 1.5], abs=0.05)


def test_gradnorm_gives_more_weight_to_the_task_that_is_behind() -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer("gradnorm", TASKS)
    shared.step(balancer, {"detect": 1.0, "segment": 1.0})
    for _ in range(400):
        weights = shared.step(balancer, {"detect": 0.25, "segment": 1.0})
    # r = 0.4 and 1.6, so at rest w_1 / w_2 = (0.4 / 1.6) ** 1.5 = 1 / 8.
    assert weights["detect"] / weights["segment"] == pytest.approx(1 / 8, abs=0.05)


def test_pcgrad_projects_conflicting_gradients() -> None:
    shared = Shared([[1.0, 0.0], [-1.0, 1.0]])
    shared.step(make_balancer("pcgrad", TASKS), {"detect": 1.0, "segment": 1.0})
    # g1 - (g1.g2 / |g2|^2) g2 = (1/2, 1/2);  g2 - (g2.g1 / |g1|^2) g1 = (0, 1)
    assert gradient(shared.trunk) == pytest.approx([0.5, 1.5])


def test_mgda_takes_the_shortest_convex_combination() -> None:
    shared = Shared([[1.0, 0.0], [0.0, 2.0]])
    weights = shared.step(make_balancer("mgda", TASKS), {"detect": 1.0, "segment": 1.0})
    # The nearest point to zero on the segment from (1, 0) to (0, 2): weights 4/5 and 1/5; twice, for two tasks.
    assert weights == pytest.approx({"detect": 1.6, "segment": 0.4}, abs=0.02)
    assert gradient(shared.trunk) == pytest.approx([1.6, 0.8], abs=0.02)


def test_imtl_g_projects_equally_on_all_gradients() -> None:
    shared = Shared([[1.0, 0.0], [1.0, 2.0]])
    shared.step(make_balancer("imtl-g", TASKS), {"detect": 1.0, "segment": 1.0})
    found = torch.tensor(gradient(shared.trunk))
    projections = [float(found @ row / row.norm()) for row in shared.jacobian]
    assert projections[0] == pytest.approx(projections[1])


@pytest.mark.parametrize("word", sorted(AGGREGATORS))
def test_aggregators_leave_each_branch_its_own_gradient(word: str) -> None:
    if word in NEEDS:
        pytest.importorskip(NEEDS[word])
    shared = Shared([[1.0, 0.5], [0.5, 1.0]])
    shared.step(make_balancer(word, TASKS), {"detect": 1.0, "segment": 1.0}, scale=3.0)
    assert gradient(shared.heads) == [3.0, 3.0]
    step = torch.tensor(gradient(shared.trunk))
    assert all(float(step @ row) > 0 for row in shared.jacobian), "a step that both tasks gain from"


@pytest.mark.parametrize("word", sorted({*SCALARIZERS, "gradnorm", "pcgrad", "imtl-g"}))
def test_an_absent_task_is_left_out_and_not_zero(word: str) -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer(word, TASKS)
    shared.step(balancer, {"detect": 1.0, "segment": 1.0})
    weights = shared.step(balancer, {"detect": 1.0})
    assert list(weights) == ["detect"]
    assert gradient(shared.trunk)[0] > 0
    assert gradient(shared.trunk)[1] == 0
    assert gradient(shared.heads)[1] == 0


@pytest.mark.parametrize("word", ["uncertainty", "imtl-l"])
def test_an_absent_task_keeps_its_learned_weight(word: str) -> None:
    """Adam's momentum does not move it on."""
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer(word, TASKS)
    for _ in range(10):
        shared.step(balancer, {"detect": 1.0, "segment": 5.0})
    known = shared.step(balancer, {"detect": 1.0, "segment": 5.0})["segment"]
    moved = shared.step(balancer, {"detect": 1.0, "segment": 5.0})["segment"]
    assert moved != known
    for _ in range(10):
        shared.step(balancer, {"detect": 1.0})
    after = shared.step(balancer, {"detect": 1.0, "segment": 5.0})["segment"]
    assert abs(after - moved) < 1.5 * abs(moved - known), "but for the one step since"


@pytest.mark.parametrize("word", ["uncertainty", "imtl-l"])
def test_what_stands_in_for_an_absent_loss_gives_its_weight_no_momentum(word: str) -> None:
    shared, balancer = Shared([[1.0, 0.0], [0.0, 1.0]]), make_balancer(word, TASKS)
    for _ in range(10):
        shared.step(balancer, {"detect": 5.0})
    # A loss of 1 is at rest under the first weight of both methods: only what was gathered meanwhile could move it.
    there = {"detect": 5.0, "segment": 1.0}
    first, second = (shared.step(balancer, there)["segment"] for _ in range(2))
    assert second == pytest.approx(first, rel=1e-6)


def test_gradnorm_leaves_the_weight_of_an_absent_task_where_it_was() -> None:
    """Adam's momentum does not move it on."""
    shared = Shared([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.5]])
    balancer = make_balancer("gradnorm", THREE)
    shared.step(balancer, dict.fromkeys(THREE, 1.0))
    before = balancer.state_dict()["weights"].tolist()
    assert before[2] != 1, "it has momentum"
    for _ in range(5):
        shared.step(balancer, dict.fromkeys(TASKS, 1.0))
    after = balancer.state_dict()["weights"].tolist()
    # Gradients of 3 and -1 in each step: for Adam alike, so the two others move alike, against each other, and what all
    # add up to is as before.
    assert after[0] - before[0] == pytest.approx(before[1] - after[1], rel=1e-3)
    assert before[0] - after[0] > 0.05
    assert after[2] == pytest.approx(before[2], abs=1e-5)


def test_gradnorm_leaves_out_what_does_not_pull_on_the_features() -> None:
    """As a teacher's term on deeper layers: whatever the others' weights, its pull stays zero."""
    shared, balancer = Shared([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), make_balancer("gradnorm", THREE)
    for _ in range(400):
        weights = shared.step(balancer, {"detect": 1.0, "segment": 1.0, "keypoint": 50.0})
    assert weights == pytest.approx({"detect": 0.5, "segment": 1.5, "keypoint": 1.0}, abs=0.05)
    assert shared.heads.grad is not None
    assert float(shared.heads.grad[2]) == pytest.approx(1.0), "it is learned all the same"
    one, balancer = Shared([[3.0, 0.0], [0.0, 0.0]]), make_balancer("gradnorm", TASKS)
    assert one.step(balancer, {"detect": 1.0, "segment": 1.0}) == {"detect": 1.0, "segment": 1.0}
    assert balancer.state_dict()["weights"].tolist() == [1.0, 1.0], "nothing to weigh against"


@pytest.mark.parametrize("word", sorted({*SCALARIZERS, "gradnorm", "gradvac"}))
def test_state_is_saved_and_resumed(word: str, tmp_path) -> None:
    # Back and forth, so that Adam's momentum is not the size of its first step.
    values = [{"detect": 1.0 + 0.5 * (-1) ** number, "segment": 2.0 - 0.1 * number} for number in range(8)]

    def go_on(balancer: Balancer, chosen: list[dict[str, float]]) -> list[dict[str, float]]:
        shared = Shared([[1.0, -0.2], [-0.3, 1.0]])
        weights = []
        for number, step in enumerate(chosen):
            weights.append(shared.step(balancer, step))
            if number % 2:
                balancer.end_epoch()
        return weights

    interrupted = make_balancer(word, TASKS)
    go_on(interrupted, values[:6])
    torch.save(interrupted.state_dict(), tmp_path / "state.pt")
    state = torch.get_rng_state()
    expected = go_on(interrupted, values[6:])
    resumed = make_balancer(word, TASKS)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.set_rng_state(state)
    assert go_on(resumed, values[6:]) == expected


def test_nothing_shared_that_trains_means_a_sum() -> None:
    heads = torch.zeros(2, requires_grad=True)
    weights = make_balancer("pcgrad", TASKS).backward({"detect": heads[0], "segment": heads[1]}, [torch.ones(2)], 1.0)
    assert weights == {"detect": 1.0, "segment": 1.0}
    assert gradient(heads) == [1.0, 1.0]


def test_a_missing_optional_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cagrad.*torchjd\[cagrad\]"):
        make_balancer("cagrad", TASKS)
