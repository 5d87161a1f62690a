"""What a run's folder says, and what is said of folders that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from left_runs import Leave

from mtyolo.comparing.runs import RunResults, read_epochs, read_runs
from mtyolo.errors import ConfigError


def test_the_best_epoch_is_the_one_whose_weights_are_kept(leave: Leave) -> None:
    """Number 0 is from before training, and leaves none."""
    folder = leave("run", *({"detect/AP": value} for value in (0.5, 0.1, 0.3, 0.2)))
    ((run,), *_) = read_runs([folder])
    assert run.best["epoch"] == 2
    assert run.last["epoch"] == 3


def test_what_is_no_number_is_not_known(tmp_path: Path) -> None:
    """And the mark that spreadsheets put before a table is none of its first column."""
    (tmp_path / "results.csv").write_text("\ufeffepoch,stage,a,b,c,d\n1,x,nan,inf,,0.5\n", encoding="utf-8")
    assert read_epochs(tmp_path / "results.csv") == [{"epoch": 1, "d": 0.5}]


def test_without_validation_the_last_epoch_counts(leave: Leave) -> None:
    ((run,), *_) = read_runs([leave("run", {}, {}, {})])
    assert run.best is run.last


def test_a_folder_of_runs_stands_for_those_that_have_begun(leave: Leave, tmp_path: Path) -> None:
    for name in ("b", "a", "a/assistants/medium", "more/c"):
        leave(name, {"detect/AP": 0.1})
    leave("fresh")
    runs, others, _ = read_runs([tmp_path, tmp_path / "a"], [tmp_path / "b/results.csv"])
    assert [run.name for run in runs] == ["a", "b", "more/c"], "each once, without assistants"
    assert others == [runs[1]]


def test_an_assistant_can_be_named_itself(leave: Leave) -> None:
    folder = leave("a/assistants/medium", {"detect/AP": 0.1})
    assert [run.name for run in read_runs([folder])[0]] == ["medium"]


@pytest.mark.parametrize(
    ("name", "kin", "seed"),
    [
        ("fixed-3", "fixed", 3),
        ("fixed_seed12", "fixed", 12),
        ("train2", "train", 2),
        ("train", "train", None),
        ("7", "*", 7),
        ("fixed/3", "fixed", 3),
    ],
)
def test_seeds_are_read_from_names(name: str, kin: str, seed: int | None) -> None:
    run = RunResults(name, [])
    assert (run.kin, run.seed) == (kin, seed)


def test_what_is_no_run_is_named_with_a_way_out(leave: Leave, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder \(looked at .*\); name a run's folder, or one of"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no run has ended an epoch there: it holds no results\.csv"):
        read_runs([tmp_path / "empty"])
    with pytest.raises(ConfigError, match=r"results\.csv: has no epoch yet; wait until one has ended"):
        read_runs([leave("fresh")])


def test_a_damaged_run_in_a_folder_of_others_is_left_out(leave: Leave, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        leave(f"runs/{name}", {"detect/AP": 0.1})
    damaged = tmp_path / "runs/b/results.csv"
    damaged.write_text("epoch\n1,2,3\n")
    runs, _, left_out = read_runs([tmp_path / "runs"])
    assert [run.name for run in runs] == ["a", "c"]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"{damaged}:2: has another number of values")
    with pytest.raises(ConfigError, match=r"results\.csv:2: has another number of values"):
        read_runs([damaged.parent])
    for name in ("a", "c"):
        (tmp_path / "runs" / name / "results.csv").write_text("epoch\n1,2,3\n")
    with pytest.raises(ConfigError, match=r"a/results\.csv:2: has another number of values"):
        read_runs([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,detect/AP\n0,0.1\n1,much\n", r"results\.csv:3: detect/AP is 'much', no number"),
        (
            "epoch,detect/AP\n0,0.1,0.2\n",
            r"results\.csv:2: has another number of values than the first line has names; remove this line",
        ),
        ("epoch,detect/AP\n0\n", r"results\.csv:2: has another number of values than the first line has names"),
        ("name,value\n,2\n", r"results\.csv:2: says no epoch; is this file a run's\?"),
        ('epoch\n"0', r"results\.csv: can not be read as a table"),
        ("epoch\n\xff", r"results\.csv: can not be read as a table"),
    ],
)
def test_what_is_no_result_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_epochs(path)
