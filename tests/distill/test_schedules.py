"""Weights over the epochs, and what is done where a teacher does not help."""

from __future__ import annotations

import pytest

from mtyolo.config.distill import DistillConfig
from mtyolo.distill.schedules import DynamicWeights, ThreeTimesRule, Weights, weights_at


def config(**options: object) -> DistillConfig:
    return DistillConfig.model_validate({"teachers": [{"weights": "t.pt", "output": {"kl": 1}}]} | options)


def test_phases_are_a_fifth_three_fifths_and_a_fifth() -> None:
    found = [weights_at(config(schedule="phases"), epoch, 10) for epoch in range(10)]
    assert found == [Weights(0.3, 0.7)] * 2 + [Weights(0.7, 0.3)] * 6 + [Weights(0.5, 0.5)] * 2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_teacher_hands_over_to_the_labels(schedule: str) -> None:
    found = [weights_at(config(schedule=schedule), epoch, 11) for epoch in range(11)]
    assert found[0] == pytest.approx((0.9, 0.1))
    assert found[5] == pytest.approx((0.5, 0.5))
    assert found[10] == pytest.approx((0.1, 0.9))
    assert [one.soft for one in found] == sorted((one.soft for one in found), reverse=True)


def test_a_ramp_brings_the_teacher_in_and_leaves_the_labels_alone() -> None:
    found = [weights_at(config(ramp=10, soft=2.0, hard=0.5), epoch, 30) for epoch in (0, 4, 9, 20)]
    assert found == [Weights(0.2, 0.5), Weights(1.0, 0.5), Weights(2.0, 0.5), Weights(2.0, 0.5)]


def test_the_rate_is_halved_after_three_times_the_teachers_loss_and_then_rests() -> None:
    rule, factors = ThreeTimesRule(), []
    for distilled in (2.9, 3.1, 9.0, 9.0, 9.0, 9.0, 1.0):
        rule.add(distilled, 1.0)
        rule.end_epoch()
        factors.append(rule.factor)
    assert factors == [1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_rule_goes_on_where_it_was_saved() -> None:
    first, second = ThreeTimesRule(), ThreeTimesRule()
    first.add(9.0, 1.0)
    second.load_state_dict(first.state_dict())
    second.end_epoch()
    assert second.factor == 0.5


def judged(rises: list[float]) -> dict[str, float]:
    weights, fitness = DynamicWeights(["a", "b"]), 0.1
    weights.judge(fitness)
    for rise in rises:
        fitness += rise
        weights.judge(fitness)
    return weights.factors


def test_a_term_that_is_not_missed_stays_at_half() -> None:
    assert judged([0.01]) == {"a": 0.5, "b": 1.0}, "on trial"
    assert judged([0.01, 0.02]) == {"a": 0.5, "b": 1.0}


def test_a_term_that_is_missed_comes_back_and_the_next_is_tried() -> None:
    assert judged([0.02, 0.01]) == {"a": 1.0, "b": 1.0}
    assert judged([0.02, 0.01, 0.02]) == {"a": 1.0, "b": 0.5}
