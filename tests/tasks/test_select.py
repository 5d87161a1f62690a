"""Non-maximum suppression against the rule written out."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from mtyolo.tasks.select import select


def decoded_rows(rows: int = 120, classes: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centre = 40 + 60 * torch.rand(2, rows, 2, generator=generator)
    size = 20 + 40 * torch.rand(2, rows, 2, generator=generator)
    return torch.cat((centre, size, torch.rand(2, rows, 1 + classes, generator=generator)), 2)


def by_hand(rows: torch.Tensor, confidence: float, iou: float, multi_label: bool) -> list[tuple[int, int, float]]:
    """(row, class, score), best first."""
    candidates = []
    for row, values in enumerate(rows.tolist()):
        scores = [values[4] * value for value in values[5:]]
        named = range(len(scores)) if multi_label else [scores.index(max(scores))]
        candidates += [(scores[name], row, name) for name in named if scores[name] > confidence]
    overlaps = box_iou(*(box_convert(rows[:, :4], "cxcywh", "xyxy"),) * 2)
    kept: list[tuple[int, int, float]] = []
    for score, row, name in sorted(candidates, reverse=True):
        if all(overlaps[row, other] <= iou or name != same for other, same, _ in kept):
            kept.append((row, name, score))
    return kept


def test_boxes_beyond_the_edge_leave_other_classes_alone() -> None:
    """Classes are moved apart by the largest coordinate: from -16 the next class would come to lie on 624."""
    rows = torch.tensor([[[632.0, 300, 16, 16, 0.9, 0.9, 0.0], [-8, 300 - 640, 16, 16, 0.8, 0.0, 0.9]]])
    assert sorted(select(rows)[0].rows.tolist()) == [0, 1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_kept_is_what_the_rule_keeps(multi_label: bool) -> None:
    decoded = decoded_rows()
    for rows, kept in zip(decoded, select(decoded, 0.2, 0.5, 300, multi_label), strict=True):
        expected = by_hand(rows, 0.2, 0.5, multi_label)
        assert list(zip(kept.rows.tolist(), kept.classes.tolist(), strict=True)) == [(r, c) for r, c, _ in expected]
        assert kept.scores.tolist() == pytest.approx([score for *_, score in expected])
        torch.testing.assert_close(kept.boxes_xyxy, box_convert(rows[kept.rows, :4], "cxcywh", "xyxy"))
        assert len(expected) > 5


def test_the_limit_keeps_the_best() -> None:
    decoded = decoded_rows()
    full, cut = select(decoded, 0.1, 0.7)[0], select(decoded, 0.1, 0.7, limit=5)[0]
    assert len(full.rows) > 5
    assert torch.equal(cut.rows, full.rows[:5])


def test_only_the_best_candidates_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    full = select(decoded_rows(), 0.1, iou=1.0)[0]
    monkeypatch.setattr("mtyolo.tasks.select.CANDIDATES", 7)
    few = select(decoded_rows(), 0.1, iou=1.0)[0]
    assert len(full.rows) > 7
    assert torch.equal(few.rows, full.rows[:7])


def test_nothing_above_the_confidence_gives_an_empty_selection() -> None:
    kept = select(decoded_rows(), confidence=0.999)[0]
    assert kept.boxes_xyxy.shape == (0, 4)
    assert len(kept.scores) == len(kept.classes) == len(kept.rows) == 0
