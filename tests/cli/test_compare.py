"""`mtyolo compare`: a table, a picture, json; and what people get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mtyolo.cli.main import USER_ERROR, main

HEAD = "epoch,stage,detect/AP,segment/AP,keypoint/AP,fitness,loss/detect\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, the second better in boxes and worse in masks; points are hardly found."""
    for name, rows in {
        "first": "0,,0.1,0.2,0,0.15,\n1,joint,0.2,0.1,0.001,0.15,1.5\n",
        "se[co]nd": "1,joint,0.3,0.075,0,0.175,1.2\n2,joint,0.1,0.01,0,0.05,1.1\n",
    }.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.csv").write_text(HEAD + rows)
    return tmp_path / "runs"


def test_a_table_names_runs_metrics_and_gains(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs), "--metric", "detect/AP", "--metric", "segment/AP"]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [["first", "1", "0.200", "0.100", ""], ["se[co]nd", "1", "0.300", "0.075", "+12.5 %"]]
    assert "mean relative gain over first" in shown


def test_a_table_is_whole_in_a_narrow_terminal(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["compare", str(runs)]) == 0
    assert "│ se[co]nd │     1 │     0.300 │      0.075 │       0.000 │ -25.0 % │" in capsys.readouterr().out


def test_a_damaged_run_is_said_to_be_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "third").mkdir()
    (runs / "third/results.csv").write_text(f"{HEAD}1,joint\n")
    assert main(["compare", str(runs)]) == 0
    said = capsys.readouterr()
    assert f"warning: left out: {runs / 'third/results.csv'}:2: has another number of values" in said.err
    assert "third" not in said.out


def test_the_last_epoch_where_asked_for_and_a_picture(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = runs / "curves.png"
    options = ["--last", "--against", str(runs / "first"), "--picture", str(picture)]
    assert main(["compare", str(runs / "se[co]nd"), *options, "--metric", "detect/AP"]) == 0
    said = capsys.readouterr()
    assert "-50.0 %" in said.out
    assert f"over the epochs: {picture}" in said.err
    with Image.open(picture) as drawn:
        assert drawn.width > 300


def test_a_loss_that_rounds_to_nothing_has_no_sign_of_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "se[co]nd/results.csv").write_text("epoch,detect/AP,fitness\n1,0.1999999,0.2\n")
    assert main(["compare", str(runs), "--metric", "detect/AP"]) == 0
    assert "+0.0 %" in capsys.readouterr().out


def test_gains_over_next_to_nothing_are_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs), "--json", "-"]) == 0
    said = capsys.readouterr()
    assert "warning: keypoint/AP of first is next to nothing" in said.err
    found = json.loads(said.out)
    assert [run["name"] for run in found["runs"]] == ["first", "se[co]nd"]
    assert found["runs"][1]["delta_m"]["mean"] == pytest.approx((0.5 - 0.25 - 1) / 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{runs}/third"], ["third: no such folder", "name a run's folder"]),
        (["{runs}/first/best.safetensors"], ["best.safetensors: is a file", "name the run's folder"]),
        (["{runs}", "--against", "{runs}/third"], ["third: no such folder"]),
        (["{runs}", "--metric", "detect/ap"], ["'detect/ap'", "did you mean 'detect/AP'?"]),
        (["{runs}", "--picture", "{runs}/curves.pic"], ["curves.pic: pictures are not written with this suffix"]),
        ([], ["Missing argument 'runs'"]),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "first" / "best.safetensors").touch()
    assert main(["compare", *(argument.format(runs=runs) for argument in arguments)]) == USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(word in " ".join(said.split()) for word in words), said


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_that_are_no_formula_and_no_text_are_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "first").rename(runs / "$\\foo$")
    with_bytes = runs / os.fsdecode(b"not \xff text")
    (runs / "se[co]nd").rename(with_bytes)
    picture = runs.parent / "drawn.png"
    assert main(["compare", str(runs), "--picture", str(picture), "--json", "-"]) == 0
    with Image.open(picture) as drawn:
        assert drawn.width > 300


def test_results_are_not_written_over_and_no_file_twice(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = runs / "first" / "results.csv"
    before = results.read_bytes()
    assert main(["compare", str(runs / "first"), "--json", str(results)]) == USER_ERROR
    assert "results.csv: would be written over" in capsys.readouterr().err
    assert results.read_bytes() == before
    assert (
        main(["compare", str(runs), "--json", str(runs / "one.png"), "--picture", str(runs / "one.png")]) == USER_ERROR
    )


def test_a_table_needs_no_torch(runs: Path) -> None:
    code = f"import sys; from mtyolo.cli.main import main; assert main(['compare', {str(runs)!r}]) == 0; "
    code += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
