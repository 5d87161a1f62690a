"""A stage draws from the images that are labelled for what it learns."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from one_step import steps_of

from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.model import Model
from mtyolo.training.batches.counted import counted_images, left_out, lengths
from mtyolo.training.records.judging import Judge
from mtyolo.training.stages import Stage, plan_stages
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

POINTS = {"7.png", "8.png", "9.png"}
"""What is labelled for keypoints, and for nothing else."""


@pytest.fixture
def few_points(shapes: Path, tmp_path: Path) -> Path:
    """A data file: seven images with boxes and masks, and three with points."""
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    parts = {"rest": (range(7), ["detect", "segment"]), "points": (range(7, 10), ["keypoint"])}
    for name, (numbers, tasks) in parts.items():
        images = tmp_path / f"{name}.txt"
        images.write_text("".join(f"{shapes.parent / 'train' / str(number)}.png\n" for number in numbers))
        joined = {"join": [str(tmp_path / "points.yaml")]} if name == "rest" else {}
        own = content | joined | {"train": str(images), "tasks": tasks}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return tmp_path / "rest.yaml"


def stage_of(model: Model, **options: Any) -> Stage:
    return plan_stages(read_plan({"stages": [{"name": "one", **options}]}), TrainConfig(epochs=2), model)[0]


def names(split: Split) -> set[str]:
    return {record.path.name for record in split.records}


def test_only_images_that_are_labelled_for_its_tasks_count(make_model: MakeModel, few_points: Path) -> None:
    model, split = make_model(), load_split(few_points, "train")
    stage = stage_of(model, tasks=["keypoint"], views=4)
    assert names(counted_images(stage, model, split)) == POINTS
    assert left_out(stage, model, split) == ["stage one draws from the 3 of 10 images that are labelled for keypoint"]
    assert lengths([stage], model, split) == [12, 12]
    two = stage_of(model, tasks=["detect", "segment"])
    assert names(counted_images(two, model, split)) == names(split) - POINTS
    assert left_out(two, model, split)[0].endswith("labelled for detect or segment")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "align", "train": ["adapters"]},
        {"tasks": ["keypoint"], "align": 1.0},
        {"tasks": ["keypoint"], "distill": {"teachers": [{"weights": "yolov5s.pt", "output": {"scaled": 1.0}}]}},
    ],
    ids=["all tasks", "align", "aligned", "taught"],
)
def test_stages_that_learn_from_all_pictures_leave_none_out(
    options: dict[str, Any], make_model: MakeModel, few_points: Path
) -> None:
    model, split = make_model(), load_split(few_points, "train")
    model.adapters = torch.nn.Identity()  # type: ignore[assignment]
    stage = Stage(read_plan({"stages": [{"name": "one", **options}]}).stages[0], 0, 2, 0, ("",), ())
    counted = counted_images(stage, model, split)
    assert [*map(id, counted.records)] == [*map(id, split.records)]
    assert not left_out(stage, model, split)


def test_a_task_that_does_not_count_takes_no_place_in_batches(make_model: MakeModel, shapes: Path) -> None:
    model, split = make_model(), load_split(shapes, "train")
    for record in split.records[1:]:
        record.labels.labelled = frozenset({"keypoint"})
    counted = counted_images(stage_of(model, tasks=["keypoint"]), model, split)
    assert {record.labels.labelled for record in counted.records} == {frozenset({"keypoint"})}
    assert split.records[0].labels.labelled == {"detect", "segment", "keypoint"}, "other stages need it"


def test_every_image_of_a_batch_teaches_and_a_bad_batch_names_the_right_ones(
    make_model: MakeModel, few_points: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = steps_of(make_model(), few_points, tmp_path, tasks=["keypoint"])
    (batch,) = steps.work.loader.epoch(0)
    assert batch.targets.labelled["keypoint"].tolist() == [True] * 3
    assert {"loss/keypoint"} <= set(steps.step(batch))
    with torch.no_grad():
        steps.state.model.branches["keypoint"].layers[0].bias.fill_(math.nan)  # type: ignore[union-attr, index]
    with caplog.at_level(logging.WARNING):
        steps.step(batch)
    (said,) = caplog.messages
    assert {name for name in (f"{number}.png" for number in range(10)) if name in said} == POINTS


class SignalAt:
    """A validation that finds nothing; at its n-th time it asks the run to stop."""

    fitness = 0.5

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, *arguments: Any, **options: Any) -> SignalAt:
        self.times -= 1
        if self.times == 0:
            signal.raise_signal(signal.SIGTERM)
        return self

    def as_dict(self) -> dict[str, Any]:
        return {"fitness": self.fitness}


def test_a_run_of_such_stages_says_so_and_resumes_to_the_same_weights(
    make_model: MakeModel,
    few_points: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = [{"name": "points", "tasks": ["keypoint"], "views": 3, "epochs": 2}, {"name": "joint", "epochs": 1}]
    options: dict[str, Any] = {"plan": {"stages": stages}, "config": config.model_copy(update={"batch": 2})}
    run = train(make_model(), few_points, out=tmp_path / "whole", judge=Judge(SignalAt(0)), **options)
    assert "stage points draws from the 3 of 10 images" in capsys.readouterr().out
    with pytest.raises(Interrupted):
        train(make_model(), few_points, out=tmp_path / "cut", judge=Judge(SignalAt(2)), **options)
    saved = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert saved["position"] == {"stage": 0, "epoch": 1, "batch": 1}
    capsys.readouterr()
    again = train(resume=tmp_path / "cut", judge=Judge(SignalAt(0)))
    assert "not those of the run's start" not in capsys.readouterr().out
    assert again.results == run.results
    first, second = (torch.load(one.out / "state.pt", weights_only=True)["model"] for one in (run, again))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_a_state_from_before_any_image_was_left_out_goes_on(
    make_model: MakeModel, few_points: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """In the middle of an epoch that was longer."""
    plan = {"stages": [{"name": "points", "tasks": ["keypoint"], "epochs": 2}]}
    judge = Judge(SignalAt(2))
    with pytest.raises(Interrupted):
        train(make_model(), few_points, plan=plan, config=config, out=tmp_path / "run", judge=judge)
    path = tmp_path / "run" / "state.pt"
    saved = torch.load(path, weights_only=True)
    saved["position"]["batch"] = 3
    torch.save(saved, path)
    assert train(resume=tmp_path / "run", progress=False).results[-1]["epoch"] == 2
