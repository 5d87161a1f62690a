"""`mtyolo check`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mtyolo.cli.main import USER_ERROR, main
from mtyolo.data.shapes import make_shapes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_shapes(tmp_path / "shapes", train=8, val=4, size=64)


def changed(data: Path, **content: object) -> Path:
    found = yaml.safe_load(data.read_text()) | content
    data.write_text(yaml.safe_dump(found))
    return data


def test_a_sound_data_set_is_counted_and_drawn(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = data.parent / "labels.png"
    assert main(["check", str(data), "--imgsz", "64", "--picture", str(picture), "--json", "-"]) == 0
    said = capsys.readouterr()
    train, val = json.loads(said.out)["splits"]
    assert (train["name"], train["images"], val["images"]) == ("train", 8, 4)
    assert set(train["objects"]) == {"detect", "segment", "keypoint"}
    assert sum(train["classes"].values()) == train["objects"]["detect"] > 0
    assert "8 images of train with their labels" in said.err
    with Image.open(picture) as drawn:
        assert drawn.width > 300


def test_a_table_has_a_column_a_split_and_a_row_a_class(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data)]) == 0
    said = capsys.readouterr()
    rows = {cells[1].strip(): cells[2:4] for line in said.out.splitlines() if len(cells := line.split("│")) > 3}
    assert [cell.strip() for cell in rows["images"]] == ["8", "4"]
    assert set(yaml.safe_load(data.read_text())["names"].values()) <= rows.keys()
    assert "nothing wrong was found" in said.err


def test_what_is_wrong_is_said_by_split(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = data.parent / "annotations/val.json"
    content = json.loads(labels.read_text())
    content["annotations"][0]["category_id"] = 77
    labels.write_text(json.dumps(content))
    first, twin = (next(iter(sorted((data.parent / "images" / name).iterdir()))) for name in ("train", "val"))
    shutil.copy(first, twin)
    assert main(["check", str(data)]) == 0
    said = capsys.readouterr().err
    assert "val:\n1 x " in said
    assert "77" in said
    assert f"warning: 1 picture of train also in val, first {first} as {twin}" in said
    assert "nothing wrong" not in said
    assert main(["check", str(data), "--strict"]) == USER_ERROR
    assert "77" in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_that_is_there_twice_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *_, last = sorted((data.parent / "images" / "train").iterdir())
    shutil.copy(first, last)
    assert main(["check", str(data)]) == 0
    said = capsys.readouterr().err
    assert f"warning: 1 picture of train there once more, first {last} as {first}" in said
    assert "nothing wrong" not in said


def test_splits_that_can_be_read_are_shown_before_the_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(changed(data, test="images/nowhere"))]) == USER_ERROR
    said = capsys.readouterr()
    assert "images" in said.out
    assert "nowhere" in said.err.splitlines()[-1]


def test_the_first_of_several_errors_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(changed(data, val="images/first", test="images/second"))]) == USER_ERROR
    assert "first" in capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_praised_where_something_fails_or_lacks(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = data.with_name("report.json")
    assert main(["check", str(changed(data, train="images/first")), "--json", str(report)]) == USER_ERROR
    assert "nothing wrong" not in capsys.readouterr().err
    assert "images/first" in json.loads(report.read_text())["failed"]
    annotations = yaml.safe_load(data.read_text())["annotations"]
    del annotations["train"]
    assert main(["check", str(changed(data, train=None, annotations=annotations))]) == 0
    said = capsys.readouterr().err
    assert "warning: there is no train split" in said
    assert "nothing wrong" not in said


def test_pictures_without_an_object_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data.parent / "images" / "train")]) == 0
    said = capsys.readouterr().err
    assert "warning: train: no image has a labelled object" in said
    assert "nothing wrong" not in said


@pytest.mark.parametrize("option", ["--picture", "--json"])
def test_what_is_read_is_not_written_over(option: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for taken in (data, next(iter((data.parent / "images" / "train").iterdir()))):
        before = taken.read_bytes()
        assert main(["check", str(data), option, str(taken)]) == USER_ERROR
        assert "would be written over" in capsys.readouterr().err
        assert taken.read_bytes() == before


def test_data_without_any_split_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(changed(data, train=None, val=None, annotations={}))]) == USER_ERROR
    said = capsys.readouterr()
    assert "has no train split" in said.err
    assert said.out == ""


def test_many_classes_are_summed_up(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = yaml.safe_load(data.read_text())["names"]
    names |= {number: f"class {number}" for number in range(len(names), 40)}
    assert main(["check", str(changed(data, names=names))]) == 0
    said = capsys.readouterr()
    assert "10 further classes" in said.out
    assert "warning: train: 36 of 40 classes have no object: class 4, class 5, class 6, class 7" in said.err
    assert "nothing wrong" not in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{data}", "--picture", "{folder}/sheet.png", "--split", "test"], "--split test: the data has train, val"),
        (["{folder}/nowhere.yaml"], "nowhere.yaml: no such file"),
        (["{data}", "--picture", "{folder}/sheet.pic"], "sheet.pic: pictures are not written with this suffix"),
        (
            ["{data}", "--imgsz", "50", "--picture", "{folder}/sheet.png"],
            "image size 50: expected a positive multiple of",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled = [argument.format(data=data, folder=data.parent) for argument in arguments]
    assert main(["check", *filled]) == USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert words in said
