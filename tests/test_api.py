"""The door for Python: what it takes beside files, and what it says to what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mtyolo
from mtyolo.config.model import shipped_configs
from mtyolo.data.shapes import make_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2, size=64)


@pytest.fixture
def model() -> dict[str, Any]:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    return {"detector": {"graph": graph | {"width_multiple": 0.05, "depth_multiple": 0.1}}}


QUICK = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}


def test_training_takes_the_content_of_all_files(shapes: Path, model: dict[str, Any], tmp_path: Path) -> None:
    data = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    built = mtyolo.build(model, data=data)
    stages = [{"name": "only", "epochs": 1, "augment": False}]
    run = mtyolo.train(built, data, plan=stages, config=QUICK, out=tmp_path / "run", progress=False)
    assert (run.results[-1]["stage"], run.results[-1]["epoch"]) == ("only", 1)
    assert mtyolo.validate(run.best, data, size=64).tasks.keys() == {"detect"}
    again = mtyolo.train(resume=run.out, progress=False)
    assert again.results == run.results


def test_what_a_resumed_run_does_not_heed_is_said(
    shapes: Path, model: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    always: dict[str, Any] = {"config": QUICK, "plan": [{"name": "only"}], "out": tmp_path / "run", "progress": False}
    run = mtyolo.train(model, shapes, **always)
    assert not caplog.messages
    assert mtyolo.train(resume=run.out, **always).results == run.results
    said = [f"{name}= has no effect beside resume=: the run goes on as it began" for name in ("plan", "config", "out")]
    assert caplog.messages == said


def test_a_configuration_may_be_a_file_too(shapes: Path, model: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    built = mtyolo.build(model, data=shapes)
    run = mtyolo.train(built, shapes, config=tmp_path / "quick.yaml", out=tmp_path / "run", progress=False)
    assert run.results[-1]["epoch"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"config": {"epoch": 1}}, "config: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"config": {"epochs": 0}}, "config: epochs: Input should be greater than 0, got 0"),
        ({"config": 5}, r"config: expected a TrainConfig, a dictionary such as \{'epochs': 1\}, or a file, got int"),
        ({"data": {"trian": "images"}}, "data: unknown key 'trian'; did you mean 'train'?"),
        ({"data": ["images"]}, "data: expected a data file, a folder, or a dictionary of its keys, got list"),
        ({"plan": [{"name": "one", "tran": "all"}]}, "plan: unknown key 'stages.0.tran'; did you mean 'train'?"),
    ],
)
def test_what_can_not_be_meant_is_named(
    arguments: dict[str, Any], sentence: str, shapes: Path, model: dict[str, Any]
) -> None:
    built = mtyolo.build(model, data=shapes)
    with pytest.raises(mtyolo.ConfigError, match=sentence):
        mtyolo.train(built, **({"data": shapes} | arguments))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: mtyolo.build(None), "model: expected a model file, or the content of one, got NoneType"),
        (
            lambda model: mtyolo.build(mtyolo.save_weights(model, "a.safetensors")),
            "a.safetensors: holds weights and is no",
        ),
        (lambda model: mtyolo.build("yolov5n.yaml", weights=5), "weights=5: expected a path, got int"),
        (lambda model: mtyolo.build("yolov5n.yaml", features=5), "features=5: expected a path"),
        (lambda model: mtyolo.load(None), "path=None: expected a path, got NoneType"),
        (lambda model: mtyolo.open_model(None), "path=None: expected a path"),
        (lambda model: mtyolo.save_weights(model, None), "path=None: expected a path"),
        (lambda model: mtyolo.save_weights(None, "a.safetensors"), "model: expected a model of mtyolo, got NoneType"),
        (lambda model: mtyolo.predict(None, np.zeros((64, 64, 3), np.uint8)), "model=None: expected a model, or its"),
        (lambda model: mtyolo.validate(None, "data.yaml"), "model=None: expected a model, or its path"),
        (lambda model: mtyolo.validate(model, "data.yaml", features=5), "features=5: expected a path"),
        (lambda model: mtyolo.train(model, "data.yaml", out=5), "out=5: expected a path"),
        (lambda model: mtyolo.train(resume=5), "resume=5: expected a path"),
    ],
)
def test_what_is_no_path_or_no_model_file_is_named(
    call: Callable[[Any], Any],
    sentence: str,
    model: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mtyolo.ConfigError, match=sentence):
        call(mtyolo.build(model))


def test_files_inside_of_content_may_be_paths(shapes: Path, model: dict[str, Any], tmp_path: Path) -> None:
    data = yaml.safe_load(shapes.read_text()) | {"path": shapes.parent, "train": [Path("images/train")]}
    teacher = mtyolo.save_weights(mtyolo.build(model, data=data), tmp_path / "teacher.safetensors")
    distill = {"teachers": [{"weights": teacher, "output": {"kl": 1}, "cache": True, "folder": tmp_path / "cache"}]}
    plan = [{"name": "taught", "augment": False, "distill": distill}]
    assert mtyolo.train(model, data, plan=plan, config=QUICK, out=tmp_path / "run", progress=False).last.exists()
    assert (tmp_path / "cache" / "teacher.json").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_a_model_in_another_precision_is_refused_with_the_remedy(
    kind: torch.dtype, shapes: Path, model: dict[str, Any], tmp_path: Path
) -> None:
    built = mtyolo.build(model, data=shapes).to(kind)
    with pytest.raises(mtyolo.ConfigError, match=rf"its weights are {kind}, .*: give model\.float\(\); .*precision"):
        mtyolo.train(built, shapes, config=QUICK, out=tmp_path / "run", progress=False)
    for judge in (
        lambda: mtyolo.validate(built, shapes, size=64),
        lambda: mtyolo.predict(built, np.zeros((64, 64, 3), np.uint8)),
    ):
        with pytest.raises(mtyolo.DataError, match=rf"images are torch\.float32, the weights {kind}: .*model\.float"):
            judge()
    assert built(torch.zeros(1, 3, 64, 64, dtype=kind)).detect[0].dtype == kind
    built.float()
    assert mtyolo.train(built, shapes, config=QUICK, out=tmp_path / "run", progress=False).results


def test_a_model_file_in_the_place_of_weights_leads_to_build() -> None:
    sentence = r"yolov5n\.yaml: a model file, which has no weights inside; mtyolo\.build opens it"
    with pytest.raises(mtyolo.CheckpointError, match=sentence):
        mtyolo.load("yolov5n.yaml")
    with pytest.raises(mtyolo.CheckpointError, match=sentence):
        mtyolo.predict("yolov5n.yaml", np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("weights", [None, "official", "own"])
def test_a_model_that_was_built_can_be_looked_at_without_moving_its_statistics(
    weights: str | None, test_data: Path, tmp_path: Path
) -> None:
    files = {"official": test_data / "weights/yolov5n.pt", "own": tmp_path / "own.safetensors"}
    mtyolo.save_weights(mtyolo.build("yolov5n.yaml"), files["own"])
    model = mtyolo.build("yolov5n.yaml", weights=files.get(weights or ""))
    assert not any(module.training for module in model.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_class_names_may_be_a_list_as_in_data_files(model: dict[str, Any]) -> None:
    assert mtyolo.build(model | {"names": ["cat", "dog"]}).names == {0: "cat", 1: "dog"}
