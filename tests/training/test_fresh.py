"""What a model does not know when training starts is learned, or said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtyolo.api import build, open_to_judge, validate
from mtyolo.checkpoint import load
from mtyolo.config.plan import read_plan
from mtyolo.config.training import LossGains, TrainConfig
from mtyolo.data.split import load_split
from mtyolo.errors import CheckpointError
from mtyolo.inheritance import inherit
from mtyolo.model import Model
from mtyolo.training.fresh import unknown_in_words, with_fresh_classes
from mtyolo.training.settings import default_plan
from mtyolo.training.stages import plan_stages
from mtyolo.training.train import train

MakeModel = Callable[[], Model]
PROTECTED = {"name": "frozen", "epochs": 1, "freeze": ["detector"]}
SCALED = {"weights": "t.pt", "output": {"scaled": 1}}
BOXES_ALONE = {"weights": "t.pt", "output": {"scaled": 1}, "groups": {"classes": 0}}


def first_stage(model: Model, **stage: object) -> Any:
    (found,) = with_fresh_classes(read_plan({"stages": [{"name": "one", **stage}]}), model).stages
    return found


def test_a_frozen_detector_learns_classes_that_its_weights_do_not_know(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = {}
    for fresh in ((), ("disc",)):
        model, before = make_model(), make_model().state_dict()
        model.config = model.config.with_unknown(fresh)
        train(model, shapes, plan={"stages": [PROTECTED]}, config=config, out=tmp_path / str(len(fresh)))
        moved[fresh] = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("graph.", "branches.detect.")) for name in moved[()])
    learned = {name for name in moved["disc",] if not name.startswith(("branches.segment.", "branches.keypoint."))}
    assert learned == {f"branches.detect.layers.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert capsys.readouterr().out.count("1 of 2 classes are unknown to the weights, first 'disc'") == 1


@pytest.mark.parametrize(
    ("stage", "learns"),
    [
        ({}, True),
        ({"freeze": ["detector"]}, True),
        ({"freeze": ["detect"]}, False),
        ({"train": ["segment"]}, False),
        ({"train": ["detect", "segment"], "tasks": ["segment"]}, False),
        ({"lr_scale": {"detect": 0}}, False),
        ({"lr_scale": {"detector": 0}}, True),
        ({"distill": {"teachers": [{"weights": "t.pt", "output": {"scaled": 1}}], "hard": 0}}, True),
        ({"distill": {"teachers": [BOXES_ALONE], "hard": 0}}, False),
        ({"distill": {"teachers": [BOXES_ALONE]}}, True),
        ({"tasks": ["segment"], "distill": {"teachers": [SCALED], "soft": 0}}, False),
        ({"tasks": ["segment"], "distill": {"teachers": [SCALED]}}, True),
        ({"distill": {"teachers": [{"weights": "t.pt", "output": {"masks": 1}}], "hard": 0}}, False),
        ({"distill": {"teachers": [{"weights": "t.pt", "features": [{"method": "cwd"}]}], "hard": 0}}, False),
        ({"distill": {"teachers": [{"weights": "t.pt", "features": [{"method": "cwd"}]}]}}, True),
    ],
)
def test_it_is_said_whether_the_plan_teaches_them(
    stage: dict[str, Any], learns: bool, make_model: MakeModel, shapes: Path
) -> None:
    model = make_model()
    model.config = model.config.with_unknown(("disc",))
    plan = with_fresh_classes(read_plan({"stages": [{"name": "one", **stage}]}), model)
    split = load_split(shapes, "train")
    (line,) = unknown_in_words(model, plan_stages(plan, TrainConfig(), model, split.tasks), split, LossGains())
    assert line.startswith("1 of 2 classes are unknown to the weights, first 'disc': ")
    assert ("the detect branch learns them" in line, "they stay at random" in line) == (learns, not learns)


def test_a_rate_for_what_knows_its_work_is_not_for_fresh_classes(make_model: MakeModel) -> None:
    model = make_model()
    assert first_stage(model, lr_scale={"detector": 0.01}).lr_scale == {"detector": 0.01}
    model.config = model.config.with_unknown(("disc",))
    assert first_stage(model, lr_scale={"detector": 0.01}).lr_scale == {"detector": 0.01, "detect": 0.5}
    assert first_stage(model, lr_scale={"detector": 0.01, "detect": 0.02}).lr_scale["detect"] == 0.02
    named = first_stage(model, freeze=["detector", "detect"])
    assert named.freeze == ["detector", "detect"], "who names the branch means it"
    assert first_stage(model, objective="align", freeze=["detector"]).freeze == ["detector"]


def test_weights_remember_what_no_training_has_taught_yet(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after alignment, or after another branch by itself."""
    model = make_model()
    model.config = model.config.with_unknown(("disc",))
    alone = {"stages": [{"name": "masks", "epochs": 1, "train": ["segment"], "tasks": ["segment"]}]}
    run = train(model, shapes, plan=alone, config=config, out=tmp_path / "masks")
    assert "no stage of this plan teaches them" in capsys.readouterr().out
    heir = make_model()
    inherit(run.last, heir)
    for one in (model, load(run.last), load(run.best), heir):
        assert one.fresh_classes == ("disc",)
    before = heir.branches["detect"].layers[0].weight.clone()
    taught = train(heir, shapes, plan={"stages": [PROTECTED]}, config=config, out=tmp_path / "boxes")
    assert "first 'disc': the detect branch learns them" in capsys.readouterr().out
    assert not torch.equal(heir.branches["detect"].layers[0].weight, before)
    for one in (heir, load(taught.last), load(taught.best)):
        assert one.fresh_classes == ()


@pytest.mark.parametrize(
    ("stage", "gains"), [({"lr_scale": {"detect": 0}}, LossGains()), ({}, LossGains(classes=0))], ids=["rate", "gain"]
)
def test_classes_that_a_stage_leaves_where_they_were_stay_unknown(
    stage: dict[str, Any],
    gains: LossGains,
    make_model: MakeModel,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_model()
    model.config = model.config.with_unknown(("disc",))
    still, config = {"name": "still", "epochs": 1} | stage, config.model_copy(update={"gains": gains})
    run = train(model, shapes, plan={"stages": [still]}, config=config, out=tmp_path)
    assert "no stage of this plan teaches them" in capsys.readouterr().out
    for one in (model, load(run.last)):
        assert one.fresh_classes == ("disc",)


def test_what_a_training_has_taught_is_frozen_in_the_next(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    model.config = model.config.with_unknown(("disc",))
    train(model, shapes, plan={"stages": [PROTECTED]}, config=config, out=tmp_path / "first", progress=False)
    before = {name: tensor.clone() for name, tensor in model.branches["detect"].state_dict().items()}
    train(model, shapes, plan={"stages": [PROTECTED]}, config=config, out=tmp_path / "second")
    assert "unknown to the weights" not in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.branches["detect"].state_dict().items())


def test_a_run_keeps_the_plan_that_learns_them_to_resume_with(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    model.config = model.config.with_unknown(("disc",))
    run = train(
        model, shapes, plan={"stages": [PROTECTED | {"epochs": 2}]}, config=config, out=tmp_path, progress=False
    )
    saved = torch.load(run.out / "state.pt", weights_only=True)
    assert '"detector.backbone","detector.neck"' in saved["settings"]["plan"]


def test_a_branch_without_labels_is_named(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    labels = shapes.parent / "train.json"
    (tmp_path / "train.json").write_text(labels.read_text().replace('"segmentation"', '"no"'))
    content["annotations"] = content["annotations"] | {"train": str(tmp_path / "train.json")}
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(content))
    train(make_model(), data, config=config, out=tmp_path / "run")
    assert "segment: train has no labels for it, so it stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize(("patience", "said"), [(2, 1), (None, 0)])
def test_patience_without_validation_is_no_secret(
    patience: int | None,
    said: int,
    make_model: MakeModel,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config.model_copy(update={"epochs": 1, "patience": patience})
    train(make_model(), shapes, config=config, out=tmp_path)
    assert capsys.readouterr().out.count("patience 2: nothing is validated, so no stage ends early") == said


def test_training_leaves_a_model_as_trainable_as_it_was(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model().train()
    still = model.get_parameter("graph.layers.0.conv.weight").requires_grad_(False)
    train(model, shapes, plan={"stages": [PROTECTED]}, config=config, out=tmp_path, progress=False)
    assert [parameter is still for parameter in model.parameters() if not parameter.requires_grad] == [True]
    assert model.training
    assert model.branches["detect"].training


def test_classes_of_official_weights_are_matched_or_noted(test_data: Path, tmp_path: Path) -> None:
    weights = test_data / "weights" / "yolov5n.pt"
    detector = {"graph": "yolov5n.yaml", "weights": str(weights)}
    model = build({"detector": detector, "names": {0: "person", 1: "zebu", 2: "car"}})
    assert model.fresh_classes == ("zebu",)
    assert not model.training, "or a first look would move its statistics"
    assert load(weights).fresh_classes == ()


def test_what_knows_none_of_the_classes_is_not_judged(
    test_data: Path, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = test_data / "weights" / "yolov5n.pt"
    with pytest.raises(CheckpointError, match=r"yolov5n.pt: does not know 2 of 2 classes, first 'square'; train it"):
        validate(weights, shapes, size=64)
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent), "names": {0: "person", 1: "disc"}}
    data = shapes.parent / "known.yaml"
    data.write_text(yaml.safe_dump(content))
    open_to_judge(weights, data)
    assert "does not know 1 of 2 classes, first 'disc'; of these it finds nothing" in caplog.text


def test_a_detector_alone_has_a_plan_too(make_model: MakeModel) -> None:
    model = make_model()
    assert default_plan(model) == "all-at-once"
    detector = model.config.detector.model_copy(update={"weights": "yolov5n.pt"})
    model.config = model.config.model_copy(update={"detector": detector})
    assert default_plan(model) == "freeze-then-unfreeze"
    del model.branches["segment"], model.branches["keypoint"]
    assert default_plan(model) == "head-first"
    model.config = model.config.with_unknown(("disc",))
    assert default_plan(model) == "freeze-then-unfreeze", "which lets the branch learn them"
    model.config = model.config.with_unknown(("square", "disc"))
    assert default_plan(model) == "new-classes", "there is nothing to protect"
    assert plan_stages(with_fresh_classes(read_plan("freeze-then-unfreeze"), model), TrainConfig(), model)
