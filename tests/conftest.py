"""What tests share: where the real data lies, and data files written for a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

COCO_FLIP_IDX = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where processes share the files, short ones fill up what is left at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data: MTYOLO_TEST_DATA, by default shared/data beside the checkout."""
    folder = Path(os.environ.get("MTYOLO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"test data is not at {folder}: set MTYOLO_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def coco_mini(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file for coco_mini with boxes, masks and keypoints from COCO json, for both splits."""
    root = test_data / "coco_mini"
    content = {
        "path": str(root),
        "train": "images/train",
        "val": "images/val",
        "annotations": {
            split: [f"annotations/instances_{split}.json", f"annotations/person_keypoints_{split}.json"]
            for split in ("train", "val")
        },
        "names": yaml.safe_load((root / "coco_mini.yaml").read_text())["names"],
        "kpt_shape": [17, 3],
        "flip_idx": COCO_FLIP_IDX,
    }
    path = tmp_path_factory.mktemp("data") / "coco_mini.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def coco_few(coco_mini: Path, test_data: Path) -> Path:
    """The same with a part of the photos: what trains on them takes a third of the time."""
    content = yaml.safe_load(coco_mini.read_text())
    for split, count in (("train", 32), ("val", 12)):
        photos = sorted((test_data / "coco_mini/images" / split).glob("*.jpg"))[:count]
        content[split] = str(coco_mini.with_name(f"{split}_few.txt"))
        Path(content[split]).write_text("\n".join(map(str, photos)))
    path = coco_mini.with_name("coco_few.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
