"""What commands write: json that is whole or absent, and every picture that can be drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from mtyolo.cli.main import USER_ERROR, main
from mtyolo.cli.output import write_json
from mtyolo.errors import MtyoloError

PREDICT = ["predict", "--model", "yolov5n.yaml", "--imgsz", "64", "--device", "cpu"]


def test_json_stays_whole_where_it_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "found.json"
    write_json({"old": 1}, path)

    def full(file: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mtyolo.files.os.fsync", full)
    with pytest.raises(MtyoloError, match=r"found\.json: can not be written: No space left on device"):
        write_json({"new": 1}, path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_goes_into_a_pipe_which_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json([1], pipe)
    reader.join(timeout=60)
    assert json.loads(read[0]) == [1]
    assert pipe.is_fifo()


def test_a_pipe_that_takes_no_more_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, text: str, encoding: str) -> None:
        raise BrokenPipeError(32, os.strerror(32))

    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(MtyoloError, match="pipe: can not be written: Broken pipe; name a file"):
        write_json([1], tmp_path / "pipe")


def test_json_on_dev_stdout_does_not_replace_the_file_that_this_is(tmp_path: Path) -> None:
    script = "from mtyolo.cli.output import write_json; from pathlib import Path; "
    script += "write_json([1], Path('/dev/stdout')); print('after')"
    with (tmp_path / "said").open("a") as said:
        subprocess.run([sys.executable, "-c", script], stdout=said, check=True, timeout=60)
    assert (tmp_path / "said").read_text().endswith("after\n")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "said"]


def test_a_picture_that_can_not_be_drawn_is_counted_and_the_others_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in {"a" * 240: (80, 60), "é" * 120: (80, 60), "long": (70000, 1), "plain": (80, 60)}.items():
        Image.new("RGB", size).save(photos / f"{name}.png")
    out, found = tmp_path / "drawn", tmp_path / "found.json"
    assert main([*PREDICT, "--source", str(photos), "--out", str(out), "--json", str(found)]) == 0
    described = json.loads(found.read_text())
    assert len(described) == 4
    drawn = {Path(one["path"]).stem: one["picture"] for one in described if "picture" in one}
    assert drawn.keys() == {"a" * 240, "é" * 120, "plain"}
    assert all(Path(picture).is_file() for picture in drawn.values())
    said = capsys.readouterr().err
    assert "1 x picture not drawn" in said
    assert "a picture of 70000x1 pixels can not be written as JPEG" in said


def test_where_no_picture_can_be_drawn_the_json_is_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    Image.new("RGB", (80, 60)).save(tmp_path / "plain.png")
    arguments = ["--source", str(tmp_path / "plain.png"), "--json", str(tmp_path / "found.json")]
    assert main([*PREDICT, *arguments, "--out", str(tmp_path / "file")]) == USER_ERROR
    assert "none of 1 pictures can be drawn; the first: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1
