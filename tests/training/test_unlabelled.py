"""Labels that are not there are said before the run, and not trained on as background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mtyolo.api import build
from mtyolo.config.model import shipped_configs
from mtyolo.config.training import TrainConfig
from mtyolo.errors import DataError
from mtyolo.model import Model
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

HARD = {"weights": "teacher.safetensors", "output": {"kl": 1}}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A YOLO data file of two pictures, whose labels folder was lost."""
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), np.full((64, 64, 3), 90, np.uint8))
    content = {"train": "images/train", "names": ["square", "disc"], "kpt_shape": [2, 3], "flip_idx": [1, 0]}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "bare.yaml"


@pytest.mark.parametrize(
    "stage",
    [
        {"name": "late"},
        {"name": "late", "align": 1.0},
        {"name": "late", "distill": {"teachers": [HARD], "schedule": "cosine"}},
    ],
    ids=str,
)
def test_a_split_without_one_object_is_refused_by_stages_that_learn_from_labels(
    stage: dict[str, object], bare: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    plan, out = {"stages": [{"name": "first", "objective": "align"}, stage]}, tmp_path / "run"
    with pytest.raises(DataError) as refusal:
        train(make_model(), bare, plan=plan, config=config, out=out, progress=False)
    said, line = str(refusal.value), bare.read_text().splitlines().index("train: images/train") + 1
    assert said.startswith(f"{bare}:{line}: train: no label in the whole split, and stage 'late' learns from labels")
    assert f"looked for in {tmp_path / 'labels' / 'train'}, {tmp_path / 'labels-seg' / 'train'}" in said
    assert "put them there, or learn without any: --plan distill-unlabelled" in said
    assert not out.exists()


def test_one_object_is_enough_and_a_teacher_alone_needs_none(
    bare: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    alone = {"name": "alone", "distill": {"hard": 0, "teachers": [HARD]}}
    with pytest.raises(Exception, match=r"teacher\.safetensors: no such file"):
        train(make_model(), bare, plan={"stages": [alone]}, config=config, out=tmp_path / "run", progress=False)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    run = train(make_model(), bare, config=config, out=tmp_path / "run", progress=False)
    assert len(run.results) == 2


def test_a_folder_of_pictures_is_named_with_what_it_is_for(
    bare: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "images" / "train"
    with pytest.raises(DataError) as refusal:
        train(make_model(), folder, config=config, out=tmp_path / "run", progress=False)
    said = str(refusal.value)
    assert said.startswith(f"{folder}: train: no image is labelled for detect, segment, keypoint, from which")
    assert "name classes and labels in a data file, or learn without any" in said
    assert "--plan distill-unlabelled" in said


def test_images_that_are_labelled_for_other_tasks_only_are_named(
    shapes: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent), "tasks": ["detect"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    plan = {"stages": [{"name": "masks", "tasks": ["segment"]}]}
    with pytest.raises(DataError, match=r"data\.yaml:\d+: train: no image is labelled for segment, .*train\.json; put"):
        train(make_model(), tmp_path / "data.yaml", plan=plan, config=config, out=tmp_path / "run", progress=False)


def test_a_model_with_adapters_may_align_them_instead(bare: Path, config: TrainConfig, tmp_path: Path) -> None:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    levels = {"name": "features", "levels": {8: 6, 16: 8, 32: 12}}
    model = build({"extractor": levels, "detector": {"graph": graph | {"width_multiple": 0.05}}}, data=bare)
    with pytest.raises(DataError, match=r"or learn without any: --plan align for the adapters, or --plan distill-unl"):
        train(model, bare, config=config, out=tmp_path / "run", progress=False)
