"""`mtyolo bench`: a table and json; and what people get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mini_graph import MINI
from PIL import Image

import mtyolo
from mtyolo.cli.main import USER_ERROR, main

QUICK = ["--imgsz", "64", "--rounds", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    model = mtyolo.build({"detector": {"graph": MINI}})
    return mtyolo.export(model, tmp_path_factory.mktemp("exported") / "n.onnx", size=64).path


def test_a_table_has_a_line_for_each(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "yolov5n.yaml", str(exported), *QUICK]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [["yolov5n.yaml", "images", "1,872,157"], ["n.onnx", "images", "-"]]
    assert rows[0][-1] == "1.00"
    assert "64x64 pixels, 1 at once, on cpu" in shown


def test_json_has_all_numbers_and_models_of_one_name_their_paths(
    exported: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "n.onnx"
    other.write_bytes(exported.read_bytes())
    photos = str(shapes.parent / "images" / "val")
    arguments = [str(exported), str(other), "--images", photos, "--batch", "3", "--rounds", "2", "--device", "cpu"]
    assert main(["bench", *arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["imgsz"], found["batch"], found["rounds"]) == (64, 3, 2)
    assert [row["model"] for row in found["rows"]] == [str(exported), str(other)]
    assert all(row["ms"] > 0 and row["ms_quartiles"][0] <= row["ms"] for row in found["rows"])


def test_no_model_and_no_picture_is_written_over(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    for taken in (exported, photo):
        before = taken.read_bytes()
        arguments = ["--images", str(tmp_path), "--rounds", "2", "--json", str(taken)]
        assert main(["bench", str(exported), *arguments]) == USER_ERROR
        assert "would be written over" in capsys.readouterr().err
        assert taken.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing argument 'models'"]),
        (["nowhere.yaml"], ["nowhere.yaml: no such"]),
        (["yolov5n.yaml", "--rounds", "1"], ["--rounds"]),
        (["yolov5n.yaml", "--images", "{folder}", *QUICK], ["no image in this folder"]),
        (["yolov5n.yaml", "{exported}", "--imgsz", "96"], ["n.onnx: was exported for 64 pixels", "--imgsz 64"]),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], words: list[str], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(folder=tmp_path, exported=exported) for argument in arguments]
    assert main(["bench", *given]) == USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(word in " ".join(said.split()) for word in words), said
