"""From data files to splits: counts of real sets, merging, joining, and what images are labelled for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from mtyolo.api import build
from mtyolo.config.data import DataConfig
from mtyolo.data.formats.coco import read_json
from mtyolo.data.formats.masks import rle_mask
from mtyolo.data.formats.yolo import label_path, label_root
from mtyolo.data.records import Split, names_differ
from mtyolo.data.sources import read_data
from mtyolo.data.split import load_split
from mtyolo.drawing import COCO_SKELETON
from mtyolo.errors import ConfigError, DataError

COCO_FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


def counts(split: Split) -> dict[str, int]:
    labels = [record.labels for record in split.records]
    flags = [label.keypoints[..., 2] for label in labels if label.keypoints is not None]
    return {
        "images": len(split),
        "boxes": sum(int((~label.crowd).sum()) for label in labels),
        "crowd": sum(int(label.crowd.sum()) for label in labels),
        "masks": sum(segment is not None for label in labels for segment in label.segments or []),
        "persons": sum(int((flag > 0).any(1).sum()) for flag in flags),
        "points": sum(int((flag > 0).sum()) for flag in flags),
    }


# From coco_mini/README.md; masks: boxes and crowd.
README_COUNTS = {
    "train": {"images": 80, "boxes": 731, "crowd": 8, "masks": 739, "persons": 86, "points": 800},
    "val": {"images": 40, "boxes": 337, "crowd": 4, "masks": 341, "persons": 39, "points": 370},
}


@pytest.mark.parametrize("name", ["train", "val"])
def test_coco_json_has_the_published_counts(coco_mini: Path, name: str) -> None:
    split = load_split(coco_mini, name, strict=True)
    assert counts(split) == README_COUNTS[name]
    assert {task: split.count(task) for task in split.tasks} == dict.fromkeys(
        ("detect", "segment", "keypoint"), len(split)
    )


@pytest.mark.parametrize("name", ["train", "val"])
def test_yolo_txt_folders_merge_into_the_same_objects(test_data: Path, name: str) -> None:
    split = load_split(test_data / "coco_mini", name)
    expected = README_COUNTS[name]
    found = counts(split)
    assert found == {**expected, "crowd": 0, "masks": expected["boxes"]}
    assert split.points == 17  # not in the file: read from the width of the rows
    assert not split.may_mirror


def test_both_formats_give_the_same_boxes_and_classes(test_data: Path, coco_mini: Path) -> None:
    text = {record.path.name: record.labels for record in load_split(test_data / "coco_mini", "val").records}
    for record in load_split(coco_mini, "val").records:
        coco, yolo = record.labels.select(~record.labels.crowd), text[record.path.name]
        ours, theirs = (
            sorted(np.column_stack([one.classes, one.boxes_xyxy]).round(1).tolist()) for one in (coco, yolo)
        )
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=0.2)


@pytest.mark.parametrize(
    ("folder", "name", "images", "boxes", "masks"),
    [
        ("nuclei_demo", "train", 24, 957, 957),
        ("nuclei_demo", "val", 8, 296, 296),
        ("bccd_demo", "train", 80, None, 0),
        ("bccd_demo", "val", 20, None, 0),
    ],
)
def test_other_sets_have_their_published_counts(
    test_data: Path, folder: str, name: str, images: int, boxes: int | None, masks: int
) -> None:
    split = load_split(test_data / folder, name)
    if boxes is None:
        files = (test_data / folder / "labels" / name).glob("*.txt")
        boxes = sum(len(set(path.read_text().split("\n")) - {""}) for path in files)
    found = counts(split)
    assert (found["images"], found["boxes"], found["masks"]) == (images, boxes, masks)


def test_run_lengths_decode_as_the_library_does(coco_mini: Path) -> None:
    segments = [segment for record in load_split(coco_mini, "val").records for segment in record.labels.segments or []]
    for segment in segments[:100]:
        assert segment is not None
        np.testing.assert_array_equal(rle_mask(segment), coco_mask.decode(segment))


def test_flip_idx_is_read_from_left_and_right_in_coco_names(test_data: Path) -> None:
    config = DataConfig(
        path=str(test_data / "coco_mini"),
        val="images/val",
        annotations={"val": "annotations/person_keypoints_val.json"},
    )
    split = load_split(config, "val")
    assert split.flip_idx == COCO_FLIP
    assert split.names == {0: "person"}
    assert split.skeleton is not None
    assert {tuple(sorted(pair)) for pair in split.skeleton} == {tuple(sorted(pair)) for pair in COCO_SKELETON}


def test_data_set_of_80_classes_numbers_them_without_gaps(test_data: Path, coco_mini: Path) -> None:
    config = DataConfig(
        path=str(test_data / "coco_mini"), val="images/val", annotations={"val": "annotations/instances_val.json"}
    )
    split = load_split(config, "val")
    assert split.names == load_split(coco_mini, "val").names
    assert split.category_ids is not None
    assert split.category_ids[79] == 90  # toothbrush


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three images with boxes of two classes; keypoints for the persons of the first only; the third shows a cup."""
    write(tmp_path / "images" / "train", "a", "b", "c")
    rows = {"a": "0 .5 .5 .4 .4\n", "b": "0 .5 .5 .4 .4\n1 .2 .2 .1 .1\n", "c": "1 .5 .5 .2 .2\n"}
    for name, row in rows.items():
        put(tmp_path / "labels" / "train" / f"{name}.txt", row)
    put(tmp_path / "labels-pose" / "train" / "a.txt", "0 .5 .5 .4 .4 .4 .4 2 .6 .6 1\n")
    content = {"train": "images/train", "names": ["person", "cup"], "kpt_shape": [2, 3], "flip_idx": [1, 0]}
    put(tmp_path / "small.yaml", yaml.safe_dump(content))
    return tmp_path / "small.yaml"


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (100, 80), (90, 120, 30)).save(folder / f"{name}.png")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_missing_pose_file_means_unlabelled_only_where_persons_are_shown(small: Path) -> None:
    split = load_split(small, "train", strict=True)
    labelled = {record.path.stem: set(record.labels.labelled) for record in split.records}
    assert labelled == {"a": {"detect", "keypoint"}, "b": {"detect"}, "c": {"detect", "keypoint"}}


def test_a_pose_file_alone_does_not_say_that_there_are_no_cups(small: Path) -> None:
    (small.parent / "labels/train/a.txt").unlink()
    by_name = {record.path.stem: record.labels.labelled for record in load_split(small, "train").records}
    assert by_name == {"a": {"keypoint"}, "b": {"detect"}, "c": {"detect", "keypoint"}}


def test_rows_of_two_widths_do_not_tell_how_many_points_there_are(small: Path) -> None:
    put(small, yaml.safe_dump({"train": "images/train", "names": ["person", "cup"]}))
    assert load_split(small, "train").points == 2
    put(small.parent / "labels-pose/train/b.txt", "0 .5 .5 .4 .4 .4 .4 2 .6 .6 1 .5 .5 1\n")
    split = load_split(small, "train")
    assert split.points is None
    assert "and no kpt_shape in the data file" in split.problems.summary()


def test_points_without_flags_are_labelled_unless_they_lie_at_the_origin(small: Path) -> None:
    put(small, small.read_text().replace("- 3\n", "- 2\n", 1))
    put(small.parent / "labels-pose/train/a.txt", "0 .5 .5 .4 .4 0 .5 0 0\n")
    split = load_split(small, "train", strict=True)
    assert split.records[0].labels.keypoints is not None
    assert split.records[0].labels.keypoints[0].tolist() == [[0, 40, 2], [0, 0, 0]]


def test_tasks_of_the_data_file_have_the_last_word(small: Path) -> None:
    put(small, small.read_text() + "tasks: [detect]\n")
    split = load_split(small, "train")
    assert split.tasks == ("detect",)
    assert split.points is None


def test_pose_row_completes_the_box_that_it_describes(small: Path) -> None:
    labels = load_split(small, "train").records[0].labels
    assert len(labels) == 1
    assert labels.keypoints is not None
    np.testing.assert_allclose(labels.keypoints[0], [[40, 32, 2], [60, 48, 1]], atol=1e-4)


def test_joined_files_match_classes_by_name(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "images", "d")
    put(other / "labels" / "d.txt", "0 .5 .5 .2 .2\n1 .5 .5 .9 .9\n")
    put(other / "other.yaml", yaml.safe_dump({"train": "images", "names": ["cup", "spoon"]}))
    put(small, small.read_text() + "join: [other/other.yaml]\n")
    split = load_split(small, "train")
    joined = next(record for record in split.records if record.path.stem == "d")
    assert split.names == {0: "person", 1: "cup"}
    assert joined.labels.classes.tolist() == [1]
    assert joined.labels.keypoints is not None
    assert joined.labels.labelled == {"detect"}
    assert any("spoon" in note for note in split.problems.notes)
    assert any("1 joined images are labelled for 1 of 2 classes" in note for note in split.problems.notes)


def test_files_that_join_each_other_are_read_once(small: Path, tmp_path: Path) -> None:
    put(tmp_path / "second.yaml", yaml.safe_dump({"join": ["small.yaml"]}))
    put(small, small.read_text() + "join: [second.yaml]\n")
    assert len(load_split(small, "train")) == 3
    assert load_split(tmp_path / "second.yaml", "train").names == {0: "person", 1: "cup"}


def test_a_list_picks_its_images_from_a_json(test_data: Path, tmp_path: Path) -> None:
    """As official COCO lists do; what it does not name is not wanted, and no problem."""
    root = test_data / "coco_mini"
    chosen = sorted((root / "images" / "val").glob("*.jpg"))[:3]
    (tmp_path / "val.txt").write_text("".join(f"{path}\n" for path in chosen))
    content = {
        "train": str(root / "images" / "val"),
        "val": "val.txt",
        "annotations": {name: [str(root / "annotations" / "instances_val.json")] for name in ("train", "val")},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    whole, split = load_split(tmp_path / "data.yaml", "train"), load_split(tmp_path / "data.yaml", "val", strict=True)
    assert [record.path for record in split.records] == chosen
    known = {record.path: record.labels for record in whole.records}
    assert all(np.array_equal(record.labels.boxes_xyxy, known[record.path].boxes_xyxy) for record in split.records)
    assert counts(split)["boxes"] > 0


def test_pictures_of_one_name_in_a_list_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write(tmp_path / folder, "a")
    images = [{"id": 1, "file_name": "y/a.png"}, {"id": 2, "file_name": "z/a.png"}]
    content = {"images": images, "categories": [{"id": 1, "name": "cup"}], "annotations": []}
    put(tmp_path / "cups.json", json.dumps(content))
    put(tmp_path / "list.txt", "x/a.png\ny/a.png\n")
    (tmp_path / "more").mkdir()
    for places, missing in (("list.txt", 0), (["list.txt", "more"], 1)):
        config = DataConfig(path=str(tmp_path), val=places, annotations={"val": "cups.json"})
        split = load_split(config, "val")
        assert [record.path for record in split.records] == [tmp_path / "y" / "a.png"]
        assert split.problems.counts["image file missing (skipped)"] == missing


def test_labels_lie_beside_the_last_folder_called_images() -> None:
    image = Path("/data/images/street/images/train/a.b.jpg")
    assert label_path(image, "labels-seg") == Path("/data/images/street/labels-seg/train/a.b.txt")
    assert label_root(image, "labels-seg") == Path("/data/images/street/labels-seg")


def test_keypoint_file_alone_does_not_label_all_classes(tmp_path: Path) -> None:
    write(tmp_path / "images", "a", "b")
    images = [{"id": n, "file_name": f"{name}.png", "width": 100, "height": 80} for n, name in enumerate("ab", 1)]
    person = {"id": 1, "name": "person"}
    box = {"category_id": 1, "bbox": [10, 10, 40, 40], "iscrowd": 0}
    points = [15, 15, 2, 20, 20, 1]
    put(
        tmp_path / "instances.json",
        json.dumps(
            {
                "images": images[:1],
                "categories": [person, {"id": 7, "name": "cup"}],
                "annotations": [{**box, "id": 5, "image_id": 1}],
            }
        ),
    )
    put(
        tmp_path / "points.json",
        json.dumps(
            {
                "images": images,
                "categories": [{**person, "keypoints": ["left_eye", "right_eye"]}],
                "annotations": [
                    {**box, "id": 5, "image_id": 1, "keypoints": points},
                    {**box, "id": 6, "image_id": 2, "keypoints": points},
                ],
            }
        ),
    )
    config = DataConfig(path=str(tmp_path), train="images", annotations={"train": ["instances.json", "points.json"]})
    split = load_split(config, "train", strict=True)
    assert [len(record.labels) for record in split.records] == [1, 1]
    assert [set(record.labels.labelled) for record in split.records] == [{"detect", "keypoint"}, {"keypoint"}]
    assert split.flip_idx == [1, 0]


def test_a_folder_of_one_data_file_stands_for_it(small: Path) -> None:
    assert read_data(small.parent).config.names == {0: "person", 1: "cup"}
    put(small.parent / "second.yaml", "names: [a]")
    with pytest.raises(ConfigError, match=r"expected one data file.*second\.yaml, small\.yaml"):
        read_data(small.parent)


def test_a_folder_of_pictures_alone_is_a_training_split_without_labels(small: Path) -> None:
    images = next(path.parent for path in sorted(small.parent.rglob("*")) if path.suffix in {".png", ".jpg"})
    source = read_data(images)
    split = load_split(source, "train", strict=True)
    assert len(split) == len([path for path in images.iterdir() if path.suffix in {".png", ".jpg"}])
    assert split.names == {}
    assert not any(record.labels.labelled or len(record.labels) for record in split.records)
    assert not source.has("val")


def test_pictures_may_lie_in_folders_below_the_one_that_is_named(small: Path, tmp_path: Path) -> None:
    images = next(path.parent for path in sorted(small.parent.rglob("*")) if path.suffix in {".png", ".jpg"})
    shutil.copytree(images, tmp_path / "new" / "deep" / "a")
    (tmp_path / "new" / "empty").mkdir()
    split = load_split(read_data(tmp_path / "new"), "train", strict=True)
    assert {record.path.parent for record in split.records} == {tmp_path / "new" / "deep" / "a"}
    with pytest.raises(ConfigError, match=r"empty: expected a data file .* or pictures in this folder, found neither"):
        read_data(tmp_path / "new" / "empty")


def test_a_data_file_further_below_is_not_passed_over_for_its_pictures(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small.parent, tmp_path / "sets" / "one")
    with pytest.raises(ConfigError, match=r"sets: expected one data file in this folder, found one/small\.yaml;"):
        read_data(tmp_path / "sets")


def test_labels_in_the_wrong_place_are_noticed(small: Path) -> None:
    (small.parent / "labels").rename(small.parent / "lables")
    (small.parent / "labels-pose").rename(small.parent / "poses")
    split = load_split(small, "train")
    assert "no label in the whole split" in split.problems.counts
    with pytest.raises(DataError, match=r"small\.yaml:\d+: no object found"):
        load_split(small, "train", strict=True)


def test_what_others_write_into_data_files_is_ignored_and_other_pictures_than_colours_are_refused(small: Path) -> None:
    text = small.read_text()
    small.write_text(text + "roboflow: {workspace: mine}\nminival: minival.txt\nchannels: 3\n")
    assert len(load_split(small, "train"))
    small.write_text(text + "channels: 1\n")
    with pytest.raises(ConfigError, match=r"channels: Input should be 3"):
        load_split(small, "train")


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key(small: Path) -> None:
    put(small, small.read_text() + "flip_index: [1, 0]\n")
    with pytest.raises(ConfigError, match=r"small\.yaml:\d+: unknown key 'flip_index'; did you mean 'flip_idx'"):
        load_split(small, "train")


@pytest.fixture
def pointed(tmp_path: Path) -> Path:
    """A data file that leaves it to its json how many points an object has: two."""
    write(tmp_path / "images", "a")
    for split in ("train", "val"):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
            "categories": [{"id": 1, "name": "cup"}, {"id": 3, "name": "person", "keypoints": ["head", "foot"]}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 9, 9, 9], "keypoints": [9, 9, 2, 12, 12, 2]}
            ],
        }
        put(tmp_path / f"{split}.json", json.dumps(content))
    content = {"train": "images", "val": "images", "annotations": {"train": "train.json", "val": "val.json"}}
    put(tmp_path / "pointed.yaml", yaml.safe_dump(content))
    return tmp_path / "pointed.yaml"


@pytest.mark.parametrize(
    ("in_json", "line", "expected"),
    [
        (None, "", None),
        ([[1, 2]], "", [(0, 1)]),
        ([[1, 2]], "skeleton: [[1, 0]]", [(1, 0)]),
        ([[1, 2]], "skeleton: []", []),
        ([[1, 2]], "tasks: [detect]", None),
        ([[1, 3]], "", None),
        ([[0, 1]], "", None),
        ([["head", "foot"]], "", None),
        ([[1, 2, 2]], "", None),
        ("head to foot", "", None),
        ([True], "", None),
    ],
)
def test_pictures_join_points_as_json_or_data_file_say(pointed: Path, in_json: Any, line: str, expected: Any) -> None:
    path = pointed.parent / "val.json"
    content = json.loads(path.read_text())
    content["categories"][1]["skeleton"] = in_json
    path.write_text(json.dumps(content))
    put(pointed, f"{pointed.read_text()}{line}\n")
    assert load_split(pointed, "val").skeleton == expected


def test_a_json_without_annotations_labels_no_points(pointed: Path) -> None:
    """Though its categories have some: as the lists of test images that data sets come with."""
    path = pointed.parent / "val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert load_split(pointed, "val").records[0].labels.labelled == frozenset()


def test_the_data_file_has_the_last_word_about_points(pointed: Path) -> None:
    path = pointed.parent / "val.json"
    path.write_text(path.read_text().replace('"head", "foot"', '"left foot", "right foot"'))
    usual = load_split(pointed, "val")
    assert (usual.flip_idx, usual.sigmas) == ([1, 0], [0.5, 0.5])
    put(pointed, f"{pointed.read_text()}flip_idx: [0, 1]\nkpt_sigmas: [0.1, 0.3]\n")
    said = load_split(pointed, "val")
    assert (said.flip_idx, said.sigmas) == ([0, 1], [0.1, 0.3])


@pytest.fixture
def joined(pointed: Path) -> Path:
    """A data file like `pointed`, which joins it, and whose json knows more about the points."""
    write(pointed.parent / "more" / "images", "b")
    content = json.loads((pointed.parent / "val.json").read_text())
    content["images"][0]["file_name"] = "b.png"
    content["categories"][1] |= {"keypoints": ["left foot", "right foot"], "skeleton": [[1, 2]]}
    put(pointed.parent / "more" / "val.json", json.dumps(content))
    put(pointed.parent / "more.yaml", yaml.safe_dump({"val": "more/images", "annotations": {"val": "more/val.json"}}))
    put(pointed, f"{pointed.read_text()}join: [more.yaml]\n")
    return pointed


def test_of_joined_files_one_is_enough_to_tell_of_mirrors_and_lines(joined: Path) -> None:
    split = load_split(joined, "val")
    assert len(split) == 2
    assert (split.flip_idx, split.skeleton) == ([1, 0], [(0, 1)])
    assert split.category_ids is None, "two files may number classes in two ways"


def test_joined_files_with_other_numbers_of_points_are_refused(joined: Path) -> None:
    path = joined.parent / "more" / "val.json"
    content = json.loads(path.read_text())
    content["categories"][1] |= {"keypoints": ["a", "b", "c"]}
    content["annotations"][0]["keypoints"] *= 2
    content["annotations"][0]["keypoints"] = content["annotations"][0]["keypoints"][:9]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"joined data sets have \[2, 3\] keypoints; they must have the same"):
        load_split(joined, "val")


def test_points_of_a_class_that_is_left_out_do_not_count(pointed: Path) -> None:
    """Neither how they are joined, nor what they become in a mirror."""
    path = pointed.parent / "val.json"
    content = json.loads(path.read_text())
    points = ["left", "right", "left", "right"]
    content["categories"].insert(0, {"id": 9, "name": "hand", "keypoints": points[:2], "skeleton": [[2, 1]]})
    content["categories"][2]["skeleton"] = [[1, 2]]
    path.write_text(json.dumps(content))
    put(pointed, f"{pointed.read_text()}names: [cup, person]\n")
    found = load_split(pointed, "val")
    assert (found.skeleton, found.flip_idx) == ([(0, 1)], None)


@pytest.mark.parametrize("wrong", ["[[0, -1]]", "[[0]]", "[0, 1]", "[[0, 1, 1]]", "body"])
def test_a_skeleton_is_a_list_of_pairs(pointed: Path, wrong: str) -> None:
    put(pointed, f"{pointed.read_text()}skeleton: {wrong}\n")
    with pytest.raises(ConfigError, match=r"pointed\.yaml:\d+: .*skeleton"):
        load_split(pointed, "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("kpt_sigmas: [0.1, 0.1, 0.1]", "kpt_sigmas has 3 entries and the labels have 2 points; give one for each"),
        ("flip_idx: [0, 2, 1]", r"flip_idx has 3 entries and the labels have 2 points; it must name each of 0\.\.1"),
        ("skeleton: [[0, 1], [1, 2]]", r"skeleton joins point 2 and the labels have 2 points; count them from 0"),
        ("flip_idx: [1, 1]", r"flip_idx has 2 entries and the labels have 2 points; it must name each of 0\.\.1"),
    ],
)
def test_what_does_not_go_with_the_points_of_the_json_is_named_with_its_line(
    pointed: Path, line: str, message: str
) -> None:
    put(pointed, f"{pointed.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=rf"pointed\.yaml:\d+: {message}"):
        load_split(pointed, "val")
    put(pointed, f"{pointed.read_text()}tasks: [detect]\n")
    assert load_split(pointed, "val").sigmas is None, "nobody asks for points"


@pytest.mark.parametrize("names", ["", "names: [person]\n", "names: [cup]\n"])
@pytest.mark.parametrize("named", [True, False])
def test_a_model_gets_as_many_points_as_the_json_has(pointed: Path, names: str, named: bool) -> None:
    if not named:  # then the annotations tell
        for path in pointed.parent.glob("*.json"):
            put(path, path.read_text().replace('"keypoints": ["head", "foot"]', '"supercategory": "animal"'))
    put(pointed, pointed.read_text() + names)
    model = build({"detector": {"graph": "yolov5n.yaml"}, "tasks": {"keypoint": {}}}, data=pointed)
    assert model.keypoints == (17 if "cup" in names else 2)


def test_a_json_that_is_elsewhere_does_not_keep_the_others_from_telling_the_points(pointed: Path) -> None:
    put(pointed, pointed.read_text() + "names: [person]\n")
    (pointed.parent / "val.json").unlink()
    assert read_data(pointed).points() == 2


def test_points_of_data_that_is_not_labelled_for_them_do_not_count(pointed: Path) -> None:
    put(pointed, pointed.read_text() + "names: [person]\ntasks: [detect]\n")
    model = build({"detector": {"graph": "yolov5n.yaml"}, "tasks": {"keypoint": {}}}, data=pointed)
    assert model.keypoints == 17


def test_one_json_is_enough_to_tell_that_there_are_no_points(pointed: Path) -> None:
    put(pointed, pointed.read_text() + "names: [cup]\n")
    source = read_data(pointed)
    assert source.points() is None
    assert [path.name for path in source.outlines] == ["val.json"]


@pytest.mark.parametrize(
    ("data", "model", "difference"),
    [
        (["person", "cup"], ["person", "cup"], None),
        (["Person ", "cup"], ["person", "Cup"], None),
        (["person", "cup"], ["cup", "person"], "2 of 2 .* 0 is 'person' in the data and 'cup' in the model"),
        (["person", "cup"], ["person", "mug"], "1 of 2 .* 1 is 'cup' in the data and 'mug' in the model"),
        (["person", "cup"], ["0", "1"], None),
        (["class0", "class1"], ["person", "cup"], None),
        (["person", "cup"], ["class_0", "class_1"], None),
        (["person"], ["item"], None),
        (["person", "cup"], ["1", "0"], "2 of 2"),
    ],
)
def test_classes_are_compared_by_name_where_both_have_names(
    data: list[str], model: list[str], difference: str | None
) -> None:
    found = names_differ(dict(enumerate(data)), dict(enumerate(model)))
    assert found is None if difference is None else found is not None and re.search(difference, found)


POLYGON = [10, 10, 40, 10, 40, 40, 10, 40]
NARROWER = coco_mask.encode(np.asfortranarray(np.eye(80, 90, dtype=np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("changes", "said", "left"),
    [
        (
            {"segmentation": [[10, 10, 1e9, 10, 1e9, 1e9]]},
            r"a polygon reaches 1e\+09, far outside the image of 100x80",
            2,
        ),
        ({"segmentation": [[10, 10, -1e30, 10, 40, 40]]}, r"a polygon reaches 1e\+30, far outside", 2),
        ({"segmentation": [[10, 10, 10**400, 10, 40, 40]]}, "a polygon needs pairs of finite numbers", 2),
        ({"segmentation": [[[10, 10], [40, 10]] * 3]}, "a polygon needs pairs of finite numbers", 2),
        ({"segmentation": {"size": [80, 100], "counts": ["4000", "4000"]}}, "must be counts that sum to 8000", 2),
        ({"segmentation": {"size": [80, 100], "counts": [10**400]}}, "must be counts that sum to 8000", 2),
        ({"segmentation": {"size": [80, 100], "counts": [4000, 3000]}}, "must be counts that sum to 8000", 2),
        ({"segmentation": {"size": [80, 100], "counts": NARROWER}}, "compressed run lengths do not cover 8000", 2),
        ({"bbox": [10**400, 10, 30, 30]}, "bbox with a number that is too large", 1),
        ({"iscrowd": "no"}, "iscrowd 'no' is neither 0 nor 1", 1),
        ({"iscrowd": 2}, "iscrowd 2 is neither 0 nor 1", 1),
        ({"iscrowd": [0]}, r"iscrowd \[0\] is neither 0 nor 1", 1),
        ({"segmentation": [[x * 5 for x in POLYGON]]}, "", 2),
        ({"iscrowd": "0"}, "", 2),
        ({"iscrowd": False}, "", 2),
        ({"iscrowd": None}, "", 2),
    ],
)
def test_an_annotation_with_impossible_values_is_named(
    tmp_path: Path, changes: dict[str, Any], said: str, left: int
) -> None:
    split = load_annotations(tmp_path, changes, {})
    assert len(split.records[0].labels) == left
    assert not split.records[0].labels.crowd.any()
    assert len(split.problems) == bool(said)
    assert re.search(f"annotation 1: .*{said}" if said else "", split.problems.summary())


def test_outlines_of_crowds_alone_do_not_label_masks(tmp_path: Path) -> None:
    crowd, without = {"iscrowd": 1}, {"segmentation": None}
    assert load_annotations(tmp_path, crowd, without).records[0].labels.labelled == {"detect"}
    assert load_annotations(tmp_path, {}, without).records[0].labels.labelled == {"detect", "segment"}


def test_an_annotation_of_a_second_file_completes_its_like_and_stands_for_itself_otherwise(tmp_path: Path) -> None:
    load_annotations(tmp_path, {}, {"bbox": [50, 10, 30, 30], "segmentation": None})
    content = json.loads((tmp_path / "cups.json").read_text())
    first, second = content["annotations"]
    first |= {"bbox": [60, 40, 20, 20], "segmentation": [[60, 40, 80, 40, 80, 60, 60, 60]]}  # its id, another place
    second |= {"segmentation": [[50, 10, 80, 10, 80, 40, 50, 40]], "area": 700.0}
    put(tmp_path / "more.json", json.dumps(content))
    config = DataConfig(path=str(tmp_path), train="images", annotations={"train": ["cups.json", "more.json"]})
    labels = load_split(config, "train").records[0].labels
    assert labels.boxes_xyxy[:, :2].tolist() == [[10, 10], [50, 10], [60, 40]]
    assert [int(rle_mask(rle).sum()) if rle else 0 for rle in labels.segments or []] == [900, 900, 400]
    assert labels.areas is not None
    assert labels.areas.tolist() == [0, 700, 0]


def test_an_outline_in_one_file_does_not_label_the_pictures_of_another(tmp_path: Path) -> None:
    write(tmp_path / "images", "b")
    load_annotations(tmp_path, {})
    content = json.loads((tmp_path / "cups.json").read_text())
    content["images"].append({"id": 2, "file_name": "b.png", "width": 100, "height": 80})
    (cup,) = content["annotations"]
    del cup["segmentation"]
    content["annotations"].append(cup | {"id": 2, "image_id": 2})
    put(tmp_path / "boxes.json", json.dumps(content))
    config = DataConfig(path=str(tmp_path), train="images", annotations={"train": ["cups.json", "boxes.json"]})
    labelled = {record.path.stem: record.labels.labelled for record in load_split(config, "train").records}
    assert labelled == {"a": {"detect", "segment"}, "b": {"detect"}}


def test_an_id_that_one_file_gives_twice_stands_for_two_objects(tmp_path: Path) -> None:
    split = load_annotations(tmp_path, {}, {"id": 1})
    assert len(split.records[0].labels) == 2
    assert split.problems.counts == {"annotation id given twice (both kept)": 1}


@pytest.mark.parametrize("crowd", [1, "1", True])
def test_crowd_is_a_number_a_text_or_true(tmp_path: Path, crowd: object) -> None:
    assert load_annotations(tmp_path, {"iscrowd": crowd}, {}).records[0].labels.crowd.tolist() == [True, False]


def load_annotations(folder: Path, *changes: dict[str, Any]) -> Split:
    """A picture with a box and its outline for each of the changes."""
    write(folder / "images", "a")
    usual = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30], "segmentation": [POLYGON], "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{**usual, "id": number, **change} for number, change in enumerate(changes, 1)],
    }
    put(folder / "cups.json", json.dumps(content))
    return load_split(DataConfig(path=str(folder), train="images", annotations={"train": "cups.json"}), "train")


@pytest.mark.parametrize(
    "text", ['{"images": [], "a": 1' + "0" * 5000 + "}", "[" * 200_000], ids=["digits", "brackets"]
)
def test_a_json_that_python_does_not_take_in_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path / "odd.json", text)
    with pytest.raises(DataError, match=r"odd\.json: not json text"):
        read_json(tmp_path / "odd.json")


@pytest.mark.parametrize("sigma", ["0", "-0.1", ".inf", ".nan"])
def test_a_sigma_that_measures_nothing_is_named_with_its_line(small: Path, sigma: str) -> None:
    put(small, small.read_text() + f"kpt_sigmas: [0.1, {sigma}]\n")
    with pytest.raises(ConfigError, match=r"small\.yaml:\d+: kpt_sigmas\.1: Input should be (greater than 0|a finite)"):
        load_split(small, "train")


def test_a_polygon_a_little_off_the_image_is_clipped_to_it(small: Path) -> None:
    put(small.parent / "labels/train/a.txt", "0 -.005 .5 1.005 .5 .5 1.009\n")
    assert load_split(small, "train").records[0].labels.boxes_xyxy[0].tolist() == [0, 40, 100, 80]


def test_polygons_without_a_suffix_are_masks_in_plain_labels(small: Path) -> None:
    put(small.parent / "labels" / "train" / "c.txt", "1 .2 .25 .8 .25 .8 .75 .2 .75\n")
    split = load_split(small, "train")
    labels = next(record.labels for record in split.records if record.path.stem == "c")
    np.testing.assert_allclose(labels.boxes_xyxy, [[20, 20, 80, 60]], atol=1e-3)
    assert labels.segments is not None
    assert labels.segments[0] is not None


@pytest.mark.parametrize("labels", ["lables", "[labels, lables]", "/nowhere/lables"])
def test_a_labels_folder_that_is_not_there_is_named_with_its_line(small: Path, labels: str) -> None:
    put(small, f"{small.read_text()}labels: {labels}\n")
    line = small.read_text().count("\n")
    with pytest.raises(DataError, match=rf"small\.yaml:{line}: labels: no such folder: /.*/lables$"):
        load_split(small, "train")


def test_labels_given_for_another_split_only_leave_background_and_the_remark_names_them(small: Path) -> None:
    (small.parent / "labels").rename(small.parent / "boxes")
    (small.parent / "boxes" / "train").rename(small.parent / "boxes" / "val")
    put(small, small.read_text() + "labels: boxes\n")
    assert "labels are looked for with images replaced by boxes\n" in load_split(small, "train").problems.summary()


def test_a_tilde_in_a_data_file_is_the_home_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small.parent))
    expected = len(load_split(small, "train"))
    content = yaml.safe_load(small.read_text())
    for path, train in (("~", "images/train"), ("/", "~/images/train")):
        for data in (small, {**content, "path": path, "train": train, "labels": ["~/labels"]}):
            put(small, yaml.safe_dump({**content, "path": path, "train": train, "labels": ["~/labels"]}))
            split = load_split(data, "train")
            assert len(split) == expected
            assert sum(len(record.labels) for record in split.records) == 4
    put(small.parent / "elsewhere" / "joining.yaml", "join: ['~/small.yaml']\n")
    assert len(load_split(small.parent / "elsewhere" / "joining.yaml", "train")) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("names: [a, b, a]", "names: two classes are called 'a'; give each its own name"),
        ("names: {0: a, 1: a}", "names: two classes are called 'a'"),
        ("names: [a, '']", "names: a class name is empty"),
        ("names: [yes, no, on]", "names: the class name True is no text; quote what YAML takes"),
        ("names: [1, 2, 3]", "names: the class name 1 is no text; quote what YAML takes"),
        ("names: {0: a, 1: }", "names: the class name None is no text"),
        ("names: person", "names: expected a list of class names, or {0: person, …}, got 'person'"),
        ("nc: 1000000000", "nc: Input should be less than or equal to 100000, got 1000000000"),
    ],
)
def test_classes_that_can_not_be_told_apart_are_refused_with_their_line(
    tmp_path: Path, lines: str, message: str
) -> None:
    put(tmp_path / "odd.yaml", f"train: images\n{lines}\n")
    with pytest.raises(ConfigError, match=rf"odd\.yaml:2: {re.escape(message)}"):
        read_data(tmp_path / "odd.yaml")


def test_names_from_python_may_be_a_tuple() -> None:
    assert DataConfig.model_validate({"train": "images", "names": ("a", "b")}).names == {0: "a", 1: "b"}


def test_training_labels_of_which_none_can_be_used_are_refused(small: Path) -> None:
    for path in (small.parent / "labels-pose" / "train").iterdir():
        path.unlink()
    for name in "abc":
        put(small.parent / "labels" / "train" / f"{name}.txt", "0,.5,.5,.4,.4\n")
    with pytest.raises(DataError, match=r"small\.yaml:\d+: train: none of its labels can be used \(3 are wrong, .*a\."):
        load_split(small, "train")
    put(small, small.read_text() + "val: images/train\n")
    assert load_split(small, "val").problems.summary(), "of validation it is said, no more"
    (small.parent / "labels" / "train" / "a.txt").write_text("0 .5 .5 .4 .4\n")
    assert len(load_split(small, "train")) == 3
