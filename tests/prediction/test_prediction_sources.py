from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtyolo.errors import DataError
from mtyolo.prediction.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.JPG", "notes.txt", "deep/c.png", "odd[1].png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (12, 11), (number, 0, 0)).save(path)
    return tmp_path


def names(sources: object) -> list[str]:
    return [source.path.name for source in find_sources(sources)]  # type: ignore[arg-type, union-attr]


def test_a_folder_gives_its_images_by_name_and_nothing_else(folder: Path):
    (folder / "album.png").mkdir()
    assert names(folder) == ["a.JPG", "b.png", "odd[1].png"]
    assert names(str(folder / "*")) == ["a.JPG", "b.png", "odd[1].png"]


def test_images_below_a_folder_are_said_to_be_left_out(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "deep/c.png").rename(folder / "deep/C.PNG")
    remark = f"images below it, as in {folder}/deep, are not looked at: give '{folder}/**/*' for all"
    find_sources(folder)
    assert caplog.messages == [f"{folder}: {remark}"]
    for path in folder.glob("*.*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"{folder}: no image in this folder \(.*\); {re.escape(remark)}$"):
        find_sources(folder)
    assert names(f"{folder}/**/*") == ["C.PNG"]
    caplog.clear()
    (folder / "deep").rename(folder / ".hidden")
    Image.new("RGB", (12, 11)).save(folder / "a.png")
    assert names(folder) == ["a.png"]
    assert not caplog.messages


def test_a_glob_may_look_into_deeper_folders(folder: Path):
    assert names(str(folder / "*.png")) == ["b.png", "odd[1].png"]
    assert names(str(folder / "**" / "*.png")) == ["b.png", "c.png", "odd[1].png"]
    assert names(str(folder / "*")) == ["a.JPG", "b.png", "odd[1].png"]


def test_a_file_may_have_brackets_in_its_name_and_a_folder_one_like_an_address(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert names(str(folder / "odd[1].png")) == ["odd[1].png"]
    monkeypatch.chdir(folder)
    (folder / "deep").rename("cam:")
    assert names("cam:/c.png") == ["c.png"]


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names(["~/a.JPG", "~/deep", Path("~/b*.png")]) == ["a.JPG", "c.png", "b.png"]


def test_a_list_keeps_its_order(folder: Path):
    assert names([folder / "b.png", str(folder / "deep"), folder / "a.JPG"]) == ["b.png", "c.png", "a.JPG"]


def test_arrays_and_pil_images_are_taken_as_they_are():
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    grey = np.full((10, 10), 7, np.uint8)
    read = [source.read() for source in find_sources([pixels, Image.fromarray(pixels), grey])]
    assert (read[0] == pixels).all()
    assert (read[1] == pixels).all()
    assert read[2].shape == (10, 10, 3)
    assert (read[2] == 7).all()


def test_a_pil_image_is_turned_upright(tmp_path: Path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert find_sources(turned)[0].read().shape == (20, 10, 3)


@pytest.mark.parametrize(
    "wrong", [np.zeros((10, 10, 3)), np.zeros((3, 10, 10), np.uint8), np.zeros((0, 5, 3), np.uint8)]
)
def test_arrays_that_are_no_picture_are_refused_with_their_shape(wrong: np.ndarray):
    with pytest.raises(DataError, match=str(list(wrong.shape)).replace("[", r"\[")):
        find_sources(wrong)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 10, 10), [torch.zeros(3, 10, 10)], 0])
def test_other_things_are_refused_with_what_is_taken(wrong: object):
    with pytest.raises(DataError, match=r"(Tensor|int): expected image files, .* PIL images; of a tensor"):
        find_sources(wrong)  # type: ignore[arg-type]


def test_what_is_not_there_is_named_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=rf"{folder}/missing\.jpg: no such image"):
        find_sources("missing.jpg")
    with pytest.raises(DataError, match=rf"{folder}/\*\.webp: no image matches"):
        find_sources("*.webp")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=rf"{folder}/empty: no image in this folder"):
        find_sources("empty")
    with pytest.raises(DataError, match="the list of sources is empty"):
        find_sources([])
