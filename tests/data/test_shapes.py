"""The drawn data set: the same for the same seed, and its boxes, masks and keypoints agree with its pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec

from mtyolo.data.creatures import KEYPOINTS
from mtyolo.data.images import read_image
from mtyolo.data.records import Split
from mtyolo.data.shapes import make_shapes
from mtyolo.data.split import load_split
from mtyolo.errors import DataError

SIDE = 160


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return load_split(make_shapes(tmp_path_factory.mktemp("shapes"), train=12, val=2, size=SIDE), "train")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_shapes(tmp_path / name, train=2, val=1, size=64, seed=seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one")["images/train/0000.jpg"] != digests(tmp_path / "other")["images/train/0000.jpg"]


def test_splits_do_not_share_pictures(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=2, val=2, size=64)
    pictures = [digest for name, digest in digests(tmp_path).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 4


def test_nothing_is_wrong_with_the_labels(split: Split) -> None:
    assert len(split.problems) == 0
    assert all(record.labels.labelled == {"detect", "segment", "keypoint"} for record in split.records)
    assert split.points == 5
    assert sum(len(record.labels) for record in split.records) >= 12


def test_boxes_enclose_the_masks_exactly(split: Split) -> None:
    for record in split.records:
        for box, rle in zip(record.labels.boxes_xyxy, record.labels.segments or [], strict=True):
            rows, columns = np.nonzero(rle_codec.decode(rle))
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_visible_points_lie_on_their_creature(split: Split) -> None:
    seen = 0
    for record in split.records:
        assert record.labels.keypoints is not None
        for points, rle in zip(record.labels.keypoints, record.labels.segments or [], strict=True):
            mask = rle_codec.decode(rle)
            for x, y, visibility in points:
                if visibility == 2:
                    assert mask[int(y), int(x)]
                    seen += 1
    assert seen > 30


def test_feet_are_seen_too_and_become_each_other_in_a_mirror(split: Split) -> None:
    flags = np.concatenate([record.labels.keypoints[..., 2] for record in split.records])
    assert ((flags == 2).mean(0) > 0.5).all()
    assert split.flip_idx is not None
    mirrored = [KEYPOINTS[number] for number in split.flip_idx]
    assert mirrored == ["right eye", "left eye", "mouth", "right foot", "left foot"]


def test_eyes_are_dark_in_the_picture_where_the_labels_say(split: Split) -> None:
    pupils = [
        read_image(record.path)[int(y), int(x)].mean()
        for record in split.records
        for points in record.labels.keypoints
        for x, y, visibility in points[:2]
        if visibility == 2
    ]
    assert len(pupils) > 15
    assert np.mean(np.asarray(pupils) < 90) > 0.9


def test_folder_that_can_not_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        make_shapes(tmp_path / "file" / "shapes", train=1, val=1, size=64)
