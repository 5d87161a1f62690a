"""What is counted in a split, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtyolo.data.records import ImageRecord, Instance, Problems, Split, labels_of
from mtyolo.data.report import SplitReport, remarks, report_on, shared_pictures
from mtyolo.data.split import some_of

BOX = (10.0, 10.0, 60.0, 40.0)
SMALL = (10.0, 10.0, 17.0, 14.0)


def record(
    *instances: Instance, labelled: str = "detect segment keypoint", height: int = 100, width: int = 160
) -> ImageRecord:
    labels = labels_of(instances, labelled.split(), masks=True, points=2)
    return ImageRecord(Path("nowhere.png"), height, width, labels)


def split(*records: ImageRecord, name: str = "train") -> Split:
    return Split(name, list(records), {0: "ball", 1: "box"}, Problems(), points=2)


def points(*visible: float) -> np.ndarray:
    return np.array([[20, 20, v] for v in visible], np.float32)


def test_objects_are_counted_by_what_they_show() -> None:
    mask = {"size": [100, 160], "counts": b""}
    found = report_on(
        split(
            record(Instance(0, BOX, mask, points(2, 0)), Instance(0, SMALL, None, points(0, 0))),
            record(Instance(1, BOX, mask, points(1, 1)), labelled="detect", height=200),
            record(height=90, width=400),
            record(Instance(1, BOX, mask, crowd=True)),
            record(),
        ),
        size=160,
    )
    assert found == SplitReport(
        name="train",
        images=5,
        empty=3,
        crowd=1,
        labelled={"detect": 5, "segment": 4, "keypoint": 4},
        objects={"detect": 3, "segment": 1, "keypoint": 1},
        classes={"ball": 2, "box": 1},
        tiny=1,
        smallest=(100, 160),
        largest=(90, 400),
        problems={},
    )


@pytest.mark.parametrize(("size", "tiny"), [(160, 1), (182, 1), (184, 0), (320, 0)])
def test_tiny_is_what_the_network_sees(size: int, tiny: int) -> None:
    """Seven pixels of the picture are eight of an input that is 8/7 as large."""
    assert report_on(split(record(Instance(0, SMALL))), size).tiny == tiny


def test_classes_that_train_does_not_show_are_said() -> None:
    train = report_on(split(record(Instance(0, BOX))), 160)
    val = report_on(split(record(Instance(1, BOX), Instance(0, BOX)), name="val"), 160)
    assert list(remarks([train, val], 160)) == [
        "train: 1 of 2 classes have no object: box",
        "val: 1 of 2 classes have objects here and none in train: box",
    ]
    other = report_on(split(record(Instance(0, BOX)), name="val"), 160)
    assert not [said for said in remarks([train, other], 160) if said.startswith("val")]
    assert list(remarks([val], 160)) == [], "without train nothing is known of it"


def test_small_objects_and_partial_labels_are_said() -> None:
    found = report_on(
        split(record(Instance(0, SMALL), Instance(1, BOX)), record(Instance(0, BOX), labelled="detect")), 160
    )
    assert list(remarks([found], 160)) == [
        "train: 1 of 3 objects are under 8 pixels at --imgsz 160, and hardly found; a larger size sees more of them",
        "train: 1 of 2 images are labelled for segment, the rest do not count",
        "train: 1 of 2 images are labelled for keypoint, the rest do not count",
    ]
    assert list(remarks([replace(found, tiny=0, labelled={"detect": 2})], 160)) == []


def test_pictures_of_two_splits_are_compared_by_content(tmp_path: Path) -> None:
    def pictures(name: str, *contents: bytes) -> Split:
        found = []
        for number, content in enumerate(contents):
            path = tmp_path / f"{name}{number}.png"
            path.write_bytes(content)
            found.append(replace(record(), path=path))
        return split(*found, name=name)

    train, val = pictures("train", b"one", b"two", b"three"), pictures("val", b"six", b"two", b"other")
    assert shared_pictures(train, val) == [(tmp_path / "train1.png", tmp_path / "val1.png")]
    (tmp_path / "val1.png").unlink()
    assert shared_pictures(train, val) == []


@pytest.mark.parametrize(("count", "heights"), [(1, [100]), (4, [100, 103, 106, 109]), (20, list(range(100, 110)))])
def test_some_are_spread_over_a_split(count: int, heights: list[int]) -> None:
    found = some_of(split(*(record(height=100 + number) for number in range(10))), count)
    assert [one.height for one in found.records] == heights
