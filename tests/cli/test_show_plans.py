"""`mtyolo show --plan` refuses what training would refuse, as far as a model and a plan alone tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtyolo.cli.main import main

FED = {"extractor": {"name": "features", "levels": {8: 16, 16: 24, 32: 32}}, "detector": {"graph": "yolov5n.yaml"}}


def shown(tmp_path: Path, plan: dict[str, Any], model: str | dict[str, Any] = "yolov5n.yaml") -> int:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    if isinstance(model, dict):
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
        model = str(tmp_path / "model.yaml")
    return main(["show", model, "--imgsz", "64", "--plan", str(tmp_path / "plan.yaml")])


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ({"lr_scale": {"nekc": 0.1}}, "plan: stage 'wrong': lr_scale: this model has no part 'nekc'"),
        ({"norms": ["nekc"]}, "plan: stage 'wrong': norms: this model has no part 'nekc'"),
        ({"objective": "align"}, "align: no layer of this model is replaced by features"),
    ],
    ids=str,
)
def test_a_stage_that_training_refuses_is_refused(
    stage: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [{"name": "right"}, {"name": "wrong", **stage}]
    assert shown(tmp_path, {"stages": stages}) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("stage", [{"objective": "align", "train": ["adapters"]}, {"align": 1.0}], ids=str)
def test_alignment_needs_official_weights(
    stage: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(tmp_path, {"stages": [{"name": "a", **stage}]}, FED) == 2
    assert "align: the replaced layers are the teacher; name detector.weights" in capsys.readouterr().err
    if "align" in stage:  # beside labels, and without adapters, it is nothing
        assert shown(tmp_path, {"stages": [{"name": "a", **stage}]}) == 0


def test_a_teacher_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teachers = [{"weights": name, "output": {"scaled": 1.0}} for name in ("nowhere.pt", "small")]
    taught = [{"name": teacher["weights"], "distill": {"teachers": [teacher]}} for teacher in teachers]
    assistant = {"name": "small", "model": "yolov5n.yaml", "stages": [{"name": "b"}]}
    assert shown(tmp_path, {"stages": taught, "assistants": [assistant]}) == 0
    said = capsys.readouterr()
    assert "warning: plan: teacher nowhere.pt: no such file" in said.err
    assert "teacher small" not in said.err
    assert "1,872,157" in said.out
