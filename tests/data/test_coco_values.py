"""COCO jsons with values that programs write and the format does not know: read as meant, or named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtyolo.config.data import DataConfig
from mtyolo.data.formats.coco_annotations import identity_of
from mtyolo.data.records import Split
from mtyolo.data.sources import read_data
from mtyolo.data.split import load_split
from mtyolo.errors import DataError

BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30]}
CUP = {"id": 1, "name": "cup"}
IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}


def load(folder: Path, names: list[str] | None = None, **content: Any) -> Split:
    """A picture with one cup, but for the keys that are given."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (100, 80)).save(folder / "images" / "a.png")
    usual = {"images": [IMAGE], "categories": [CUP], "annotations": [BOX]}
    (folder / "cups.json").write_text(json.dumps(usual | content))
    config = DataConfig(path=str(folder), train="images", annotations={"train": "cups.json"}, names=names)
    read_data(config).points()  # what a model asks before the data are read
    return load_split(config, "train")


def objects(split: Split) -> int:
    return sum(len(record.labels) for record in split.records)


def test_ids_as_fractions_are_the_numbers_that_they_equal(tmp_path: Path) -> None:
    split = load(tmp_path, images=[IMAGE | {"id": 1.0}], annotations=[BOX | {"id": 1.0, "category_id": 1.0}])
    assert objects(split) == 1
    assert split.records[0].identity == 1
    assert isinstance(split.records[0].identity, int)


@pytest.mark.parametrize(
    ("value", "identity"),
    [
        (" -7 ", -7),
        (3.0, 3),
        (2.5, "2.5"),
        ("²", "²"),
        ("--5", "--5"),
        ("9" * 5000, "9" * 5000),
        (float("nan"), "nan"),
        (None, "None"),
    ],
)
def test_what_is_no_number_stays_text(value: object, identity: int | str) -> None:
    assert identity_of(value) == identity


@pytest.mark.parametrize("numbers", [[4000.0, 4000.0], [4000, 4000]])
@pytest.mark.parametrize("size", [[80.0, 100.0], [80, 100]])
def test_run_lengths_may_be_written_as_fractions(tmp_path: Path, numbers: list[float], size: list[float]) -> None:
    split = load(tmp_path, annotations=[BOX | {"segmentation": {"size": size, "counts": numbers}}])
    segments = split.records[0].labels.segments
    assert segments is not None
    assert segments[0] is not None


@pytest.mark.parametrize("keypoints", [17, 1.5, True, "nose", {"nose": 1}])
@pytest.mark.parametrize("names", [None, ["cup"]])
def test_keypoints_of_a_category_are_a_list(tmp_path: Path, names: list[str] | None, keypoints: object) -> None:
    with pytest.raises(DataError, match=r"cups\.json: keypoints of category 'cup': expected a list of their names"):
        load(tmp_path, names, categories=[CUP | {"keypoints": keypoints}])


def test_two_numbers_are_no_point(tmp_path: Path) -> None:
    split = load(tmp_path, annotations=[BOX | {"keypoints": [1, 2]}, BOX | {"id": 2, "keypoints": [20, 20, 2]}])
    assert split.points == 1
    assert "annotation 1: 2 numbers, expected 3" in split.problems.summary()
    assert load(tmp_path, annotations=[BOX | {"keypoints": [1, 2]}]).points is None


@pytest.mark.parametrize("annotations", [5, {"1": BOX}, "none"])
def test_annotations_that_are_no_list_are_named(tmp_path: Path, annotations: object) -> None:
    split = load(tmp_path, annotations=annotations)
    assert objects(split) == 0
    assert 'cups.json: "annotations" is no list' in split.problems.summary()


def test_categories_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cups\.json: lists no categories"):
        load(tmp_path, categories=5)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + "/a.png", "a\0.png", ""])
def test_a_file_name_that_no_disk_takes_is_a_missing_image(tmp_path: Path, name: str) -> None:
    split = load(tmp_path, images=[IMAGE, {"id": 2, "file_name": name}])
    assert split.problems.counts == {"image file missing (skipped)": 1}


@pytest.mark.parametrize("line", ["x" * 5000, "x" * 5000 + "/a.png"])
def test_a_line_of_a_list_that_no_disk_takes_is_skipped(tmp_path: Path, line: str) -> None:
    load(tmp_path)
    (tmp_path / "list.txt").write_text(f"images/a.png\n{line}\n")
    split = load_split(DataConfig(path=str(tmp_path), train="list.txt", names=["cup"]), "train")
    assert len(split) == 1
    assert split.problems.counts["image that can not be used (skipped)"] == 1


def test_two_categories_of_one_name_are_refused_unless_names_makes_them_one(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "categories": [CUP, CUP | {"id": 2}],
        "annotations": [BOX, BOX | {"id": 2, "category_id": 2}],
    }
    with pytest.raises(DataError, match=r"cups\.json: categories 1 and 2 are both called 'cup'; give each its own"):
        load(tmp_path, **content)
    assert load(tmp_path, ["cup"], **content).records[0].labels.classes.tolist() == [0, 0]


@pytest.mark.parametrize("category", [{"id": 1}, {"id": 1, "name": None}, {"id": 1, "name": " "}])
def test_a_category_without_a_name_is_refused(tmp_path: Path, category: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"cups\.json: category 1 has no name; give it one"):
        load(tmp_path, categories=[category])


def test_a_folder_in_place_of_the_json_is_named(tmp_path: Path) -> None:
    load(tmp_path)
    config = DataConfig(path=str(tmp_path), train="images", annotations={"train": "images"})
    with pytest.raises(DataError, match=r"images: the annotation file can not be read: Is a directory"):
        load_split(config, "train")


def at(*corners: list[float]) -> list[dict[str, Any]]:
    return [BOX | {"id": number, "bbox": list(one)} for number, one in enumerate(corners, 1)]


CORNERS = [[10, 10, 30, 40], [5, 50, 70, 79], [60, 20, 99, 60], [1, 1, 99.5, 80], [40, 40, 60, 60]]


def test_boxes_written_as_two_corners_are_named(tmp_path: Path) -> None:
    found = load(tmp_path, annotations=at(*CORNERS)).problems
    assert list(found.counts) == ["file whose boxes look like two corners"]
    assert "3 of 5 would leave their image, as two corners none; write width and height" in found.summary()


@pytest.mark.parametrize(
    "boxes",
    [
        CORNERS[:4],
        [*CORNERS, [70, 10, 20, 60]],
        [*CORNERS, [10, 70, 60, 20]],
        [[10, 10, 30, 40], [5, 20, 70, 50], [1, 2, 80, 70], [3, 3, 90, 70], [20, 20, 60, 55]],
        [*CORNERS, [10, 10, 104, 40]],
        [*[[10, 10, 30, 40]] * 11, [40, 40, 60, 60]],
    ],
    ids=["too few to tell", "no corners by width", "no corners by height", "inside", "beyond as corners", "one slip"],
)
def test_other_boxes_are_not(boxes: list[list[float]], tmp_path: Path) -> None:
    assert not load(tmp_path, annotations=at(*boxes)).problems.counts


@pytest.mark.parametrize("strange", [10**400, "x", None, True])
def test_a_box_of_something_else_says_nothing_about_the_rest(strange: object, tmp_path: Path) -> None:
    wrong = BOX | {"id": 9, "bbox": [1, 1, strange, 5]}
    assert (
        "file whose boxes look like two corners" in load(tmp_path, annotations=[*at(*CORNERS), wrong]).problems.counts
    )


def test_annotations_that_are_no_objects_are_named(tmp_path: Path) -> None:
    split = load(tmp_path, annotations=[BOX, 3, "cup"])
    assert "2 of annotations are no objects with keys" in split.problems.summary()
    assert objects(split) == 1


def test_annotations_of_which_none_can_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train: none of its labels can be used \(1 are wrong, the first: .*cups\.json"
    ):
        load(tmp_path, annotations=[BOX | {"category_id": 7}])
