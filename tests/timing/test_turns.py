"""Everyone in every round; numbers follow from the seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mtyolo.structures import Outputs
from mtyolo.timing.entrants import Entrant
from mtyolo.timing.turns import Timing, by_turns

NOTHING = Outputs({}, {}, [])


def entrant(name: str, look: Callable[[], Outputs] = lambda: NOTHING) -> Entrant:
    return Entrant(name, "images", 1, look, lambda outputs: [])


def test_rounds_are_interleaved_and_one_more_than_counts() -> None:
    order: list[str] = []
    told: list[tuple[int, int]] = []

    def looking(name: str) -> Callable[[], Outputs]:
        def look() -> Outputs:
            assert not torch.is_grad_enabled()
            order.append(name)
            return NOTHING

        return look

    two = [entrant(name, looking(name)) for name in "ab"]
    found = by_turns(two, 1, torch.device("cpu"), 3, lambda done, total: told.append((done, total)))
    assert "".join(order) == "abababab"
    assert [len(timing.looking) for timing in found] == [len(timing.finding) for timing in found] == [3, 3]
    assert told == [(number, 8) for number in range(1, 9)]


def test_what_is_told_are_medians_an_image_and_the_ratio_round_by_round() -> None:
    first = Timing(entrant("first"), 4, looking=[0.010, 0.100, 0.020], finding=[0.002, 0.020, 0.004])
    other = Timing(entrant("other"), 4, looking=[0.020, 0.200, 0.030], finding=[0.004, 0.040, 0.006])
    row = other.as_dict(first)
    assert row["network_ms"] == pytest.approx(7.5)
    assert row["detections_ms"] == pytest.approx(1.5)
    assert row["ms"] == pytest.approx(9)
    assert row["ms_quartiles"] == pytest.approx([7.5, 34.5])
    assert row["images_per_second"] == pytest.approx(1000 / 9)
    assert row["over_first"] == pytest.approx(2)
