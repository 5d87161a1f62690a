"""Labels of keypoints do not narrow how images vary for a model that has no keypoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtyolo.api import build, train
from mtyolo.cli.main import main
from mtyolo.config.training import TrainConfig
from mtyolo.data.split import load_split
from mtyolo.model import Model
from mtyolo.training.records.run import Run

MakeModel = Callable[[], Model]
UNMIRRORED = "mirroring is off"


def boxes_alone(model: Model, data: Path, config: TrainConfig, out: Path) -> Run:
    """model: its detector is taken, made anew."""
    torch.manual_seed(0)
    narrow = build(model.config.model_copy(update={"tasks": None}), data=data)
    return train(narrow, data, config=config.model_copy(update={"epochs": 1}), out=out)


def test_a_model_of_boxes_is_trained_on_mirrored_images_too(
    make_model: MakeModel,
    blind: Path,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends = [boxes_alone(make_model(), data, config, tmp_path / data.stem) for data in (shapes, blind)]
    assert UNMIRRORED not in capsys.readouterr().out
    with_flips, without = (load_file(run.last) for run in ends)
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_flips.items())


def test_a_resumed_run_still_knows_its_data(
    make_model: MakeModel, blind: Path, config: TrainConfig, tmp_path: Path
) -> None:
    run = boxes_alone(make_model(), blind, config, tmp_path / "run")
    state = torch.load(run.out / "state.pt", weights_only=True)
    assert state["given"] == {split: load_split(blind, split).fingerprint() for split in ("train", "val")}


def test_validation_says_nothing_of_mirrors(
    make_model: MakeModel, blind: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = boxes_alone(make_model(), blind, config, tmp_path / "run")
    assert main(["val", "-m", str(run.best), "-d", str(blind), "--imgsz", "64"]) == 0
    assert UNMIRRORED not in "".join(capsys.readouterr())
