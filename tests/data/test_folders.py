"""Image folders as disks have them: links that go round, pipes among the images, folders that can not be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtyolo.config.data import DataConfig
from mtyolo.data.formats.reading import find_images
from mtyolo.data.images import image_size, read_image
from mtyolo.data.split import load_split
from mtyolo.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """images/train/sub/a.png and images/val/b.png."""
    for name in ("train/sub/a", "val/b"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (100, 80)).save(path)
    return tmp_path / "images"


def test_a_pipe_among_the_images_is_named_and_not_waited_for(images: Path) -> None:
    os.mkfifo(images / "train" / "pipe.jpg")
    split = load_split(DataConfig(path=str(images.parent), train="images/train", names={0: "cup"}), "train")
    assert [record.path.name for record in split.records] == ["a.png"]
    assert "pipe.jpg: not a regular file" in split.problems.summary()
    for reader in (image_size, read_image):
        with pytest.raises(DataError, match="not a regular file"):
            reader(images / "train" / "pipe.jpg")


@pytest.mark.parametrize("target", ["..", ".", "../train", "sub"])
def test_links_do_not_multiply_the_images(images: Path, target: str) -> None:
    for name in ("a-link", "z-link"):
        (images / "train" / name).symlink_to(target)
    assert find_images([images / "train"]) == [images / "train" / "sub" / "a.png"]


def test_a_link_to_images_elsewhere_is_followed_under_its_own_name(images: Path) -> None:
    (images / "train" / "more").symlink_to("../val")
    (images / "linked").symlink_to("train")
    expected = ["linked/more/b.png", "linked/sub/a.png"]
    assert find_images([images / "linked"]) == [images / name for name in expected]


def test_a_folder_that_can_not_be_read_is_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: Any) -> Iterator[Any]:
        if os.fspath(path).endswith("sub"):  # not by its mode: root reads all
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"train/sub: the folder can not be read \(Permission denied\); let it be"):
        find_images([images / "train"])
