"""What is wrong anywhere in a plan is said before anything is trained, or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtyolo.checkpoint import save_weights
from mtyolo.config.training import TrainConfig
from mtyolo.errors import DataError, MtyoloError
from mtyolo.model import Model
from mtyolo.training.batches.loading import reading
from mtyolo.training.records.checkpoints import STATE
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


@pytest.mark.parametrize(
    ("late", "sentence"),
    [
        ({"lr_scale": {"detektor": 0.1}}, "lr_scale: this model has no part 'detektor'"),
        ({"distill": {"teachers": [{"weights": "nothere.pt", "output": {"kl": 1}}]}}, "nothere.pt: no such file"),
        ({"objective": "align"}, "align"),
    ],
    ids=str,
)
def test_a_mistake_in_the_last_stage_is_said_before_the_first_is_trained(
    late: dict[str, Any], sentence: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    plan = {"stages": [{"name": "first"}, {"name": "late"} | late]}
    out = tmp_path / "run"
    with pytest.raises(MtyoloError, match=sentence):
        train(make_model(), shapes, plan=plan, config=config, out=out, progress=False)
    assert not (out / STATE).exists()
    train(make_model(), shapes, plan={"stages": [{"name": "first"}]}, config=config, out=out, progress=False)


def test_trying_all_stages_changes_nothing_of_the_first(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """A stage that is tried, and then not reached, leaves no trace in random states or modes."""
    ends = []
    for number, rest in enumerate(([], [{"name": "second", "epochs": 1, "freeze": ["detector"]}])):
        plan = {"stages": [{"name": "first", "epochs": 1}, *rest]}
        model = make_model()
        train(model, shapes, plan=plan, config=config, out=tmp_path / str(number), progress=False)
        ends.append(torch.load(tmp_path / str(number) / STATE, weights_only=True)["run"]["results"][0])
    assert {key: value for key, value in ends[0].items() if key != "lr"} == {
        key: value for key, value in ends[1].items() if key != "lr"
    }


def test_images_and_labels_that_are_left_out_are_said(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    content["annotations"] = content["annotations"] | {"train": str(tmp_path / "train.json")}
    labels = (shapes.parent / "train.json").read_text()
    (tmp_path / "train.json").write_text(labels.replace('"file_name": "3.png"', '"file_name": "nothere.png"', 1))
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(content))
    train(make_model(), data, config=config, out=tmp_path / "run")
    said = capsys.readouterr().out
    assert "train: " in said
    assert "nothere.png" in said


def test_notes_about_the_data_are_said_without_problems_too(
    make_model: MakeModel, blind: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = config.model_copy(update={"epochs": 1})
    train(make_model(), blind, config=once, out=tmp_path / "run")
    assert "note: mirroring is off" in capsys.readouterr().out.replace("\n", " ")


def test_an_image_size_that_does_not_fit_becomes_one_that_does(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = config.model_copy(update={"imgsz": 60, "epochs": 1})
    run = train(make_model(), shapes, config=odd, out=tmp_path / "run", progress=False)
    assert "imgsz: 60 becomes 64, a multiple of the largest stride, 32" in caplog.text
    even = train(make_model(), shapes, config=odd.model_copy(update={"imgsz": 64}), out=tmp_path / "2", progress=False)
    assert run.results == even.results


@pytest.mark.parametrize(
    "words", ["worker (pid(s) 7) exited unexpectedly", "worker (pid 7) is killed by signal: Killed."]
)
def test_a_reading_process_that_was_killed_ends_in_a_sentence(words: str) -> None:
    with pytest.raises(DataError, match=r"a process that reads images was killed.*--workers.*--resume"), reading():
        raise RuntimeError(f"DataLoader {words}")
    with pytest.raises(RuntimeError, match="of the program"), reading():
        raise RuntimeError("a mistake of the program")


def test_a_teacher_that_an_earlier_stage_makes_is_no_mistake(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    save_weights(make_model(), teacher)
    first = {"weights": str(teacher), "cache": True, "folder": str(tmp_path / "saved"), "output": {"kl": 1}}
    second = {"weights": str(tmp_path / "saved"), "output": {"kl": 1}}
    third = {"weights": str(tmp_path / "run" / "last.safetensors"), "output": {"kl": 1}}
    stages = [
        {"name": str(number), "epochs": 1, "augment": False, "distill": {"teachers": [one]}}
        for number, one in enumerate((first, second, third))
    ]
    run = train(make_model(), shapes, plan={"stages": stages}, config=config, out=tmp_path / "run", progress=False)
    assert [row["stage"] for row in run.results if row["stage"]] == ["0", "1", "2"]
