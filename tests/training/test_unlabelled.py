"""Labels that are not there are said before the run, and not trained on as background."""

from __future__ import annotations

import json
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


def changed_labels(shapes: Path, folder: Path, **values: object) -> Path:
    """The drawn shapes, of whose training objects each has these values."""
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    labels = json.loads((shapes.parent / "train.json").read_text())
    labels["annotations"] = [one | values for one in labels["annotations"]]
    (folder / "train.json").write_text(json.dumps(labels))
    content["annotations"] = content["annotations"] | {"train": str(folder / "train.json")}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def test_crowd_regions_alone_are_no_labels_to_learn_from(
    shapes: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    data = changed_labels(shapes, tmp_path, iscrowd=1)
    with pytest.raises(DataError, match=r"train: no label but of crowd regions in the whole split, and stage 'all'"):
        train(make_model(), data, plan="all-at-once", config=config, out=tmp_path / "run", progress=False)


def test_objects_without_a_labelled_point_are_no_labels_of_keypoints(
    shapes: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = changed_labels(shapes, tmp_path, keypoints=[0] * 6, num_keypoints=0)
    plan = {"stages": [{"name": "all", "epochs": 1}, {"name": "points", "tasks": ["keypoint"], "epochs": 1}]}
    with pytest.raises(DataError, match=r"train: no image is labelled for keypoint, from which stage 'points' learns"):
        train(make_model(), data, plan=plan, config=config, out=tmp_path / "run", progress=False)
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.branches["keypoint"].state_dict().items()}
    train(model, data, plan={"stages": plan["stages"][:1]}, config=config, out=tmp_path / "run")
    assert "keypoint: train has no labels for it, so it stays as it is" in capsys.readouterr().out
    after = model.branches["keypoint"].state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_teacher_that_weighs_nothing_takes_over_no_labels(
    bare: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    plan = {"stages": [{"name": "mute", "distill": {"soft": 0, "teachers": [HARD]}}]}
    folder = tmp_path / "images" / "train"
    with pytest.raises(DataError, match=r"no image is labelled for detect, segment, keypoint, from which stage 'mute'"):
        train(make_model(), folder, plan=plan, config=config, out=tmp_path / "run", progress=False)


def test_a_teacher_that_labels_are_pushed_through_takes_over_none(
    bare: Path, make_model: MakeModel, config: TrainConfig, tmp_path: Path
) -> None:
    teacher = {"weights": "none.pt", "features": [{"method": "gradient"}, {"method": "cwd", "weight": 0}]}
    plan = {"stages": [{"name": "pushed", "distill": {"teachers": [teacher]}}]}
    folder = tmp_path / "images" / "train"
    with pytest.raises(DataError, match=r"no image is labelled for .* from which stage 'pushed' learns"):
        train(make_model(), folder, plan=plan, config=config, out=tmp_path / "run", progress=False)


def test_a_model_with_adapters_may_align_them_instead(bare: Path, config: TrainConfig, tmp_path: Path) -> None:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    levels = {"name": "features", "levels": {8: 6, 16: 8, 32: 12}}
    model = build({"extractor": levels, "detector": {"graph": graph | {"width_multiple": 0.05}}}, data=bare)
    with pytest.raises(DataError, match=r"or learn without any: --plan align for the adapters, or --plan distill-unl"):
        train(model, bare, config=config, out=tmp_path / "run", progress=False)
