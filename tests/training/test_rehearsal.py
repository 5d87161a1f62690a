"""What training would take is measured, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from mtyolo.checkpoint import save_weights
from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training import rehearsal
from mtyolo.training.records.judging import Judge
from mtyolo.training.rehearsal import Estimate, StageTime, rehearse

MakeModel = Callable[[], Model]


class Verdict:
    fitness = 0.5

    def as_dict(self) -> dict[str, Any]:
        return {"detect/AP": 0.5, "fitness": 0.5}


def rehearsed(model: Model, data: Path, config: TrainConfig, plan: dict[str, Any], **options: Any) -> Estimate:
    judge = Judge(options.pop("validate", lambda model, split, **given: Verdict()))
    arguments = {"plan": read_plan(plan), "features": None, "judge": judge, "own": {}, "progress": False}
    return rehearse(model, data, config=config, **arguments | options)


def test_all_stages_are_timed_and_nothing_is_left(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    stages = [{"name": "head", "train": ["detect"], "epochs": 3}, {"name": "all", "epochs": 5, "views": 2}]
    # No tracker hears of it: one that is not installed would be asked for.
    judged = config.model_copy(update={"val_every": 2, "trackers": ["comet_ml"]})
    found = rehearsed(model, shapes, judged, {"stages": stages})
    head, whole = found.stages
    assert [(stage.name, stage.epochs, stage.batches, stage.validations) for stage in found.stages] == [
        ("head", 3, 3, 2),
        ("all", 5, 6, 3),
    ]
    assert whole.parameters == sum(value.numel() for value in model.parameters())
    assert 0 < head.parameters < whole.parameters
    assert head.step
    assert whole.step
    assert found.memory is None or found.memory > 2**20
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert list(tmp_path.iterdir()) == []


def test_the_whole_is_what_steps_saving_and_validations_take() -> None:
    stages = [StageTime("a", 3, 10, 1, 2, 0.5, 0.25, 4.0), StageTime("b", 4, 5, 1, 2)]
    assert stages[0].after_epochs == 3 * 0.25 + 2 * 4.0
    assert stages[1].seconds == 0
    assert Estimate(stages, None).seconds == 3 * 10 * 0.5 + 3 * 0.25 + 2 * 4.0


def test_a_part_is_validated_and_counts_for_the_whole(
    make_model: MakeModel, shapes: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "VALIDATED", 2)
    seen: list[int] = []

    def validate(model: Model, split: Split, **given: Any) -> Verdict:
        seen.append(len(split))
        sleep(0.2)
        return Verdict()

    found = rehearsed(make_model(), shapes, config, {"stages": [{"name": "one"}]}, validate=validate)
    assert set(seen) == {2}
    (stage,) = found.stages
    assert stage.validating > 0.4, "of 4 images, of which 2 took more than 0.2 s"


def test_stages_whose_teacher_is_made_on_the_way_are_not_tried(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    def stage(name: str, weights: Path) -> dict[str, Any]:
        return {"name": name, "distill": {"teachers": [{"weights": str(weights), "output": {"kl": 1}}]}}

    there = save_weights(make_model(), tmp_path / "there.safetensors")
    stages = [stage("first", there), stage("second", tmp_path / "run/last.safetensors")]
    found = rehearsed(make_model(), shapes, config, {"stages": stages}, out=tmp_path / "run")
    assert found.stages[0].step
    assert found.stages[1].step is None
    assert not (tmp_path / "run").exists()


def test_assistants_are_refused(make_model: MakeModel, shapes: Path, config: TrainConfig) -> None:
    assistant = {"name": "medium", "model": "yolov5n.yaml", "stages": [{"name": "one"}]}
    taught = {"distill": {"teachers": [{"weights": "medium", "output": {"kl": 1}}]}}
    plan = {"assistants": [assistant], "stages": [{"name": "two"} | taught]}
    with pytest.raises(ConfigError, match="a dry run does not train assistants"):
        rehearsed(make_model(), shapes, config, plan)
