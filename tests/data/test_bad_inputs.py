"""The 75 inputs of shared/data/bad, each against what its MANIFEST.md demands of a good tool."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mtyolo.config.data import DataConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.formats.masks import rle_area
from mtyolo.data.images import read_image
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, DataError

SOUND_BOXES = 2


class Demand(NamedTuple):
    """What must come of a file: boxes read (None: the image is skipped), and what is said (None: nothing)."""

    boxes: int | None
    said: str | None = None


IMAGES = {
    "ok.jpg": Demand(2),
    "truncated.jpg": Demand(None, r"truncated\.jpg: .*truncated"),
    "no_eoi.jpg": Demand(None, r"no_eoi\.jpg: .*truncated"),
    "trailing_garbage.jpg": Demand(2),
    "zero_byte.jpg": Demand(None, r"zero_byte\.jpg: .*empty"),
    "html_named.jpg": Demand(None, r"html_named\.jpg: not an image"),
    "png_named.jpg": Demand(2),
    "cmyk.jpg": Demand(2),
    "gray8.jpg": Demand(2),
    "gray16.png": Demand(2),
    "rgb16.png": Demand(2),
    "palette_transparent.png": Demand(2),
    "rgba.png": Demand(2),
    "exif_rot6.jpg": Demand(2),
    "one_px.png": Demand(None, r"one_px\.png: 1x1 pixels"),
    "very_wide.jpg": Demand(1),
    "very_tall.png": Demand(None, r"very_tall\.png: 3x3000 pixels"),
    "animated.gif": Demand(2),
    "naïve café 01.jpg": Demand(2),
    "UPPER.JPEG": Demand(2),
    "no_label.jpg": Demand(0),
}
LABELS = {
    "cls_out_of_range.txt": Demand(2, r"cls_out_of_range\.txt:3: class 80 is not in 0\.\.79"),
    "cls_negative.txt": Demand(2, r"cls_negative\.txt:3: class -1"),
    "cls_fraction.txt": Demand(2, r"cls_fraction\.txt:3: class 1\.7 is not a whole number"),
    "coord_negative.txt": Demand(2, r"coord_negative\.txt:3: -0\.1"),
    "coord_nan.txt": Demand(2, r"coord_nan\.txt:3: .*not finite[\s\S]*coord_nan\.txt:4: .*not finite"),
    "coord_gt1.txt": Demand(2, r"coord_gt1\.txt:3: 1\.5"),
    "coord_pixels.txt": Demand(0, r"coord_pixels\.txt:1: .*look like pixels"),
    "coord_eps.txt": Demand(2),
    "box_zero_area.txt": Demand(2, r"box_zero_area\.txt:3: .*no area"),
    "cols_four.txt": Demand(2, r"cols_four\.txt:3: 4 columns"),
    "cols_six.txt": Demand(2, r"cols_six\.txt:3: 6 columns.*confidence"),
    "non_numeric.txt": Demand(2, r"non_numeric\.txt:1: .*'person'"),
    "comma.txt": Demand(0, r"comma\.txt:1: .*commas"),
    "dup_rows.txt": Demand(2, r"dup_rows\.txt: 4 rows"),
    "bom_crlf.txt": Demand(2),
    "utf16.txt": Demand(2, r"utf16\.txt: "),
    "blank_lines.txt": Demand(2),
    "empty.txt": Demand(0),
    "no_newline_end.txt": Demand(2),
}
POLYGONS = {
    "poly_two_points.txt": Demand(2, r"poly_two_points\.txt:1: .*box"),
    "poly_odd.txt": Demand(0, r"poly_odd\.txt:1: 7 coordinates"),
    "poly_out.txt": Demand(0, r"poly_out\.txt:1: -0\.05"),
    "poly_line.txt": Demand(0, r"poly_line\.txt:1: .*one line"),
    "poly_self_cross.txt": Demand(1),
    "seg_mixed.txt": Demand(3, r"seg_mixed\.txt:1: .*box"),
}
POSES = {
    "kpt_count_16.txt": Demand(0, r"kpt_count_16\.txt:1: 53 columns, 56 expected"),
    "kpt_no_vis.txt": Demand(0, r"kpt_no_vis\.txt:1: 39 columns, 56 expected"),
    "kpt_vis_3.txt": Demand(1, r"kpt_vis_3\.txt:1: visibility 3"),
    "kpt_all_zero.txt": Demand(1),
    "kpt_outside.txt": Demand(1, r"kpt_outside\.txt:1: 1 keypoints lie outside"),
    "pose_box_only.txt": Demand(0, r"pose_box_only\.txt:1: keypoints are missing"),
}
JSONS = {
    "ok.json": Demand(2),
    "rle_and_crowd.json": Demand(4),
    "dangling_image_id.json": Demand(1, r"annotation 2: image id 999"),
    "unknown_category.json": Demand(1, r"annotation 2: category id 77"),
    "missing_file.json": Demand(1, r"no not_there\.jpg in "),
    "bbox_degenerate.json": Demand(2, r"annotation 2: bbox .*no area[\s\S]*annotation 3: bbox .*no area"),
    "segmentation_odd.json": Demand(3, r"annotation 2: a polygon needs at least three points"),
    "size_mismatch.json": Demand(1, r"is 243x324 upright, the json says 640x480"),
    "string_ids.json": Demand(1, r"image ids are strings"),
    "no_annotations.json": Demand(0, r"no \"annotations\": nothing to train on"),
    "keypoints_len.json": Demand(1, r"annotation 1: 48 numbers, expected 51"),
}
REFUSED_JSONS = {
    "duplicate_ids.json": r"duplicate_ids\.json: image id 1 stands for ok\.jpg and gray8\.jpg",
    "truncated.json": r"truncated\.json:1:151: not valid json",
    "empty.json": r"empty\.json:1:1: .*empty",
}
REFUSED_YAMLS = {
    "no_such_folder.yaml": r"no_such_folder\.yaml:2: train: no such folder: /.*yaml/nowhere/images/train",
    "nc_mismatch.yaml": r"nc_mismatch\.yaml.*3 classes.*2",
    "names_gap.yaml": r"names_gap\.yaml:3: .*1 is missing",
    "no_names.yaml": r"no_names\.yaml.*neither names nor nc",
    "broken.yaml": r"broken\.yaml:2: not valid YAML",
    "flip_idx_bad.yaml": r"flip_idx_bad\.yaml.*flip_idx has 2 entries.*17",
}
TESTED_ALONE = {"orphan.txt", "ok.yaml", "no_val.yaml"}


@pytest.fixture(scope="module")
def bad(test_data: Path) -> Path:
    return test_data / "bad"


def read_one(bad: Path, image: str, tmp_path: Path, folder: str, *, strict: bool = False) -> Split:
    """One image of the folder with its labels of one kind. A list names it, so that nothing is copied."""
    listed = tmp_path / "list.txt"
    listed.write_text(f"{bad / 'images' / image}\n", encoding="utf-8")
    config = DataConfig(path=str(bad), val=str(listed), labels=folder, nc=80, kpt_shape=(17, 3))
    return load_split(config, "val", strict=strict)


def read_json(bad: Path, name: str, *, strict: bool = False) -> Split:
    config = DataConfig(path=str(bad), train="images", annotations={"train": f"coco/{name}"})
    return load_split(config, "train", strict=strict)


def test_every_input_of_the_manifest_is_tested(bad: Path) -> None:
    listed = re.findall(r"^- `([^`]+)`:", (bad / "MANIFEST.md").read_text(encoding="utf-8"), re.MULTILINE)
    tables = (IMAGES, LABELS, POLYGONS, POSES, JSONS, REFUSED_JSONS, REFUSED_YAMLS, TESTED_ALONE)
    assert len(listed) == 75
    assert sorted(listed) == sorted(name for table in tables for name in table)


CASES = [
    *((name, name, "labels", demand) for name, demand in IMAGES.items()),
    *((name, name.replace(".txt", ".jpg"), "labels", demand) for name, demand in LABELS.items()),
    *((name, name.replace(".txt", ".jpg"), "labels-seg", demand) for name, demand in POLYGONS.items()),
    *((name, name.replace(".txt", ".jpg"), "labels-pose", demand) for name, demand in POSES.items()),
]


@pytest.mark.parametrize(("name", "image", "folder", "demand"), CASES, ids=[case[0] for case in CASES])
def test_a_bad_image_or_row_is_named_counted_and_skipped(
    bad: Path, tmp_path: Path, name: str, image: str, folder: str, demand: Demand
) -> None:
    if demand.boxes is None:
        # The only image of this list can not be used, so there is nothing left; the sentence still names it.
        with pytest.raises(DataError, match=demand.said):
            read_one(bad, image, tmp_path, folder)
        return
    split = read_one(bad, image, tmp_path, folder)
    assert len(split.records[0].labels) == demand.boxes
    if demand.said:
        assert re.search(demand.said, split.problems.summary(examples=9))
        assert len(split.problems) > 0
    elif demand.boxes:
        assert len(split.problems) == 0


@pytest.mark.parametrize(("name", "image", "folder", "demand"), CASES, ids=[case[0] for case in CASES])
def test_strict_refuses_bad_inputs_and_takes_awkward_ones(
    bad: Path, tmp_path: Path, name: str, image: str, folder: str, demand: Demand
) -> None:
    if demand.said:
        with pytest.raises(DataError, match=re.escape(Path(name).stem)):
            read_one(bad, image, tmp_path, folder, strict=True)
    elif demand.boxes:
        assert len(read_one(bad, image, tmp_path, folder, strict=True).records) == 1


@pytest.mark.parametrize("name", JSONS)
def test_a_bad_annotation_is_named_and_the_rest_stays(bad: Path, name: str) -> None:
    demand = JSONS[name]
    split = read_json(bad, name)
    assert sum(len(record.labels) for record in split.records) == demand.boxes
    if demand.said:
        assert re.search(demand.said, split.problems.summary())
        with pytest.raises(DataError, match=re.escape(name)):
            read_json(bad, name, strict=True)
    else:
        assert not split.problems.summary()
        read_json(bad, name, strict=True)


@pytest.mark.parametrize("name", REFUSED_JSONS)
def test_a_json_that_means_nothing_is_refused_in_one_line(bad: Path, name: str) -> None:
    with pytest.raises(DataError, match=REFUSED_JSONS[name]) as caught:
        read_json(bad, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED_YAMLS)
def test_a_wrong_data_file_is_refused_with_its_line(bad: Path, name: str) -> None:
    with pytest.raises((ConfigError, DataError), match=REFUSED_YAMLS[name]):
        load_split(bad / "yaml" / name, "train")


def test_a_data_file_without_val_names_the_splits_that_it_has(bad: Path) -> None:
    with pytest.raises(DataError, match=r"no_val\.yaml.*no val split \(it has train\)"):
        load_split(bad / "yaml" / "no_val.yaml", "val")


def test_the_whole_folder_loads_from_any_working_folder(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    split = load_split(bad / "yaml" / "ok.yaml", "train")
    unusable = {name for name, demand in IMAGES.items() if demand.boxes is None}
    files = {path.name for path in (bad / "images").iterdir()}
    assert {record.path.name for record in split.records} == files - unusable
    assert split.problems.counts["image that can not be used (skipped)"] == len(unusable)
    assert any("orphan.txt" in note for note in split.problems.notes)
    assert any("no_label.jpg" in note for note in split.problems.notes)


def test_no_byte_of_a_bad_folder_changes(bad: Path, tmp_path: Path) -> None:
    # A writable copy: the original may be protected, and would then prove nothing.
    folder = tmp_path / "bad"
    shutil.copytree(bad, folder, copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    before = digests(folder)
    split = load_split(folder / "yaml" / "ok.yaml", "train")
    dataset = Dataset(split, 64)
    for index in range(len(dataset)):
        dataset[index]
    for name in JSONS:
        read_json(folder, name)
    assert digests(folder) == before


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


AWKWARD = ["cmyk.jpg", "rgb16.png", "rgba.png", "palette_transparent.png", "exif_rot6.jpg", "png_named.jpg"]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_formats_show_the_same_picture(bad: Path, name: str) -> None:
    sound, image = read_image(bad / "images" / "ok.jpg"), read_image(bad / "images" / name)
    assert image.shape == sound.shape == (324, 243, 3)
    visible = slice(120, None)  # rgba.png has no colour to compare in its transparent third
    difference = np.abs(image[visible].astype(int) - sound[visible]).mean()
    assert difference < 12


def test_sixteen_bit_grey_is_scaled_not_clipped(bad: Path) -> None:
    wide, grey = read_image(bad / "images" / "gray16.png"), read_image(bad / "images" / "gray8.jpg")
    assert abs(wide.mean() - grey.mean()) < 1
    assert (wide == 255).mean() < 0.05


@pytest.mark.parametrize("name", ["no_label.jpg", "empty.jpg"])
def test_no_label_is_background_and_no_error(bad: Path, tmp_path: Path, name: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{bad / 'images' / 'ok.jpg'}\n{bad / 'images' / name}\n")
    split = load_split(DataConfig(path=str(bad), train=str(listed), labels="labels", nc=80), "train", strict=True)
    assert len(split.records[1].labels) == 0
    assert split.records[1].labels.labelled == {"detect"}


def test_labels_of_a_rotated_photo_are_those_of_the_upright_one(bad: Path, tmp_path: Path) -> None:
    sound = read_one(bad, "ok.jpg", tmp_path, "labels").records[0]
    rotated = read_one(bad, "exif_rot6.jpg", tmp_path, "labels").records[0]
    assert (rotated.height, rotated.width) == (324, 243)
    np.testing.assert_allclose(rotated.labels.boxes_xyxy, sound.labels.boxes_xyxy)


def test_very_wide_images_keep_a_pixel_of_height(bad: Path, tmp_path: Path) -> None:
    sample = Dataset(read_one(bad, "very_wide.jpg", tmp_path, "labels"), 640)[0]
    assert sample.image.shape == (640, 640, 3)
    assert (sample.image != 114).any()


def test_run_lengths_in_both_forms_and_the_crowd(bad: Path) -> None:
    labels = read_json(bad, "rle_and_crowd.json").records[0].labels
    assert labels.segments is not None
    areas = [rle_area(segment) for segment in labels.segments if segment is not None]
    assert areas == [7050, 7050, 7050, 20 * 60 + 22 * 60]
    assert labels.crowd.tolist() == [False, False, True, False]


def test_crowd_regions_are_no_training_target(bad: Path) -> None:
    sample = Dataset(read_json(bad, "rle_and_crowd.json"), 320)[0]
    assert len(sample.classes) == 3


def test_categories_are_numbered_by_their_ids(bad: Path) -> None:
    split = read_json(bad, "ok.json")
    assert split.names == {0: "person", 1: "bus"}
    assert split.records[0].labels.classes.tolist() == [0, 1]
    assert split.category_ids == {0: 1, 1: 6}


def test_a_box_over_the_edge_is_clipped(bad: Path) -> None:
    boxes = read_json(bad, "bbox_degenerate.json").records[0].labels.boxes_xyxy
    assert boxes[1].tolist() == [230, 310, 243, 324]  # 13 x 14


def test_a_point_off_the_image_and_an_odd_flag_are_set_right(bad: Path, tmp_path: Path) -> None:
    def flags(name: str) -> list[float]:
        keypoints = read_one(bad, name, tmp_path, "labels-pose").records[0].labels.keypoints
        assert keypoints is not None
        return keypoints[0, :, 2].tolist()

    assert set(flags("kpt_vis_3.jpg")) == {2}
    assert sorted(flags("kpt_outside.jpg"))[:2] == [0, 2]
    assert set(flags("kpt_all_zero.jpg")) == {0}


def test_an_image_without_annotations_key_is_not_labelled(bad: Path) -> None:
    assert read_json(bad, "no_annotations.json").tasks == ()


def test_odd_segmentations_leave_boxes_without_masks(bad: Path) -> None:
    split = read_json(bad, "segmentation_odd.json")
    assert split.tasks == ("detect",)
    assert split.records[0].labels.segments is None
