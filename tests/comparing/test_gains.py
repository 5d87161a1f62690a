"""Lines of the table, what gains are over, and Δm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from left_runs import Leave

from mtyolo.comparing.curves import draw_curves
from mtyolo.comparing.gains import Comparison, compare, delta_m
from mtyolo.comparing.runs import read_runs
from mtyolo.errors import ConfigError


def compared(places: Sequence[Path], against: Sequence[Path] = (), **options: Any) -> Comparison:
    found = read_runs(places, against)
    return compare(found.runs, found.against, **options)


def gains(comparison: Comparison) -> dict[str, float | None]:
    found = {line.name: comparison.gain(line) for line in comparison.lines}
    return {name: gain if gain is None else round(gain.mean, 6) for name, gain in found.items()}


def test_delta_m_is_the_mean_relative_gain_and_errors_count_the_other_way() -> None:
    base = {"detect/AP": 0.2, "segment/AP": 0.1, "val/align": 0.5}
    assert delta_m({"detect/AP": 0.3, "segment/AP": 0.05, "val/align": 0.25}, base) == pytest.approx(
        (0.5 - 0.5 + 0.5) / 3
    )
    assert delta_m({"detect/AP": 0.3}, base) == pytest.approx(0.5), "of what both have"
    assert delta_m({"keypoint/AP": 0.3}, base) is None
    assert delta_m({"detect/AP": 0.3, "segment/AP": 0.1}, {"detect/AP": 0.2, "segment/AP": 0.0}) == pytest.approx(0.5)


def test_gains_are_over_the_first_run_where_nothing_is_named(leave: Leave) -> None:
    folders = [leave(name, {"detect/AP": value}) for name, value in (("a", 0.2), ("b", 0.3), ("c", 0.1))]
    assert gains(compared(folders)) == {"a": None, "b": 0.5, "c": -0.5}


def test_gains_are_over_the_first_run_that_was_validated(leave: Leave) -> None:
    folders = [
        leave(name, *found) for name, found in (("a", [{}]), ("b", [{"detect/AP": 0.2}]), ("c", [{"detect/AP": 0.3}]))
    ]
    assert gains(compared(folders)) == {"a": None, "b": None, "c": 0.5}


def test_each_metric_is_compared_with_the_run_that_learned_fewest_tasks(leave: Leave) -> None:
    """A network for masks has boxes, too, and is not what boxes are compared with."""
    masks = leave("masks", {"detect/AP": 0.9, "segment/AP": 0.1}, losses=("detect", "segment", "segment.mask"))
    boxes = leave("boxes", {"detect/AP": 0.2}, losses=("detect", "detect.box", "detect.class"))
    joint = leave("joint", {"detect/AP": 0.3, "segment/AP": 0.1}, losses=("detect", "segment"))
    comparison = compared([joint], [masks, boxes])
    assert {metric: line.name for metric, line in comparison.against.items()} == {
        "detect/AP": "boxes",
        "segment/AP": "masks",
    }
    assert gains(comparison) == {"masks": None, "boxes": None, "joint": 0.25}


def test_a_run_that_is_named_twice_is_one_line(leave: Leave) -> None:
    a, b = leave("a", {"detect/AP": 0.2}), leave("b", {"detect/AP": 0.3})
    assert [line.name for line in compared([a, b, a], [b]).lines] == ["b", "a"]


def test_seeds_are_one_line_and_are_compared_each_with_its_own(leave: Leave) -> None:
    for seed, (base, found) in enumerate([(0.1, 0.2), (0.4, 0.4)]):
        leave(f"fixed-{seed}", {"detect/AP": base})
        folder = leave(f"other-{seed}", {"detect/AP": found})
    comparison = compared([folder.parent], seeds=True)
    fixed, other = comparison.lines
    assert other.of("detect/AP") == pytest.approx((0.3, 0.1))
    assert comparison.gain(other) == pytest.approx((0.5, 0.5)), "1 and 0, not 0.3 over 0.25"
    assert comparison.gain(fixed) is None


def test_a_seed_without_a_partner_is_compared_with_the_mean(leave: Leave) -> None:
    for name, value in (("fixed-0", 0.1), ("fixed-1", 0.3), ("other-7", 0.3)):
        folder = leave(name, {"detect/AP": value})
    comparison = compared([folder.parent], seeds=True)
    gain = comparison.gain(comparison.lines[1])
    assert gain is not None
    assert gain.mean == pytest.approx(0.5)
    assert gain.error is None


def test_the_best_of_a_metric_is_the_least_of_an_error(leave: Leave) -> None:
    a = leave("a", {"detect/AP": 0.2, "val/align": 0.4})
    b = leave("b", {"detect/AP": 0.3, "val/align": 0.5})
    comparison = compared([a, b], metrics=["detect/AP", "val/align"])
    assert [getattr(comparison.best(metric), "name", None) for metric in comparison.metrics] == ["b", "a"]


def test_the_best_epoch_counts_or_the_last(leave: Leave) -> None:
    folder = leave("a", *({"detect/AP": value} for value in (0.0, 0.4, 0.1)))
    for last, expected in ((False, 0.4), (True, 0.1)):
        (line,) = compared([folder], last=last).lines
        assert line.of("detect/AP") == (expected, None)


def test_runs_that_only_aligned_are_compared_by_their_error(leave: Leave) -> None:
    a, b = (leave(name, {"val/align": value, "val/align.8": 1.0}) for name, value in (("a", 0.5), ("b", 0.25)))
    comparison = compared([a, b])
    assert comparison.metrics == ["val/align", "val/align.8"]
    assert gains(comparison) == {"a": None, "b": 0.25}


def test_what_no_run_has_is_refused(leave: Leave) -> None:
    folder = leave("a", {"detect/AP": 0.2})
    with pytest.raises(ConfigError, match=r"no run has 'detect/Ap' in its results\.csv; did you mean 'detect/AP'\?"):
        compared([folder], metrics=["detect/Ap"])
    with pytest.raises(
        ConfigError, match="none of these runs was validated; name what to compare, as --metric loss/detect"
    ):
        compared([leave("b", {})])


def test_gains_over_next_to_nothing_are_known(leave: Leave) -> None:
    a, b = (leave(name, {"detect/AP": 0.2, "keypoint/AP": 0.004}) for name in "ab")
    assert compared([a, b]).near_zero == ["keypoint/AP"]


def test_what_json_says(leave: Leave) -> None:
    a, b = leave("a", {"detect/AP": 0.2}), leave("b", {"detect/AP": 0.3, "segment/AP": 0.1})
    found = compared([a, b]).as_dict()
    assert found["against"] == {"detect/AP": "a"}
    assert found["runs"][0]["segment/AP"] is None
    assert found["runs"][0]["delta_m"] is None
    assert found["runs"][1] == {
        "name": "b",
        "runs": ["b"],
        "epochs": [0],
        "detect/AP": {"mean": 0.3, "error": None},
        "segment/AP": {"mean": 0.1, "error": None},
        "delta_m": {"mean": pytest.approx(0.5), "error": None},
    }


def test_a_picture_has_a_panel_a_metric_and_a_colour_a_line(leave: Leave) -> None:
    curve = [{"detect/AP": value, "segment/AP": value / 2} for value in (0.1, 0.2, 0.4)]
    folders = [leave(name, *curve[:length]) for name, length in (("a", 3), ("b", 2))]
    one = draw_curves(compared(folders, metrics=["detect/AP"]))
    both = draw_curves(compared(folders))
    assert both.shape[1] > 1.9 * one.shape[1]
    blue, orange = (np.array(colour) for colour in ((31, 119, 180), (255, 127, 14)))
    for colour in (blue, orange):
        assert (np.abs(both.astype(int) - colour).max(-1) < 3).any()
