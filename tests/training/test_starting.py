"""What a fresh keypoint branch is told before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtyolo.checkpoint import load
from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import ImageRecord, Labels, Problems, Split
from mtyolo.data.split import load_split
from mtyolo.model import Model
from mtyolo.prediction.predict import predict
from mtyolo.tasks.keypoint.branch import KeypointBranch
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.training.stages import Stage, plan_stages
from mtyolo.training.starting import start_branches, usual_pose
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


def stage_of(model: Model, **stage: object) -> Stage:
    (planned,) = plan_stages(read_plan({"stages": [{"name": "one", **stage}]}), TrainConfig(), model)
    return planned


def people(*points: list[list[float]], crowd: bool = False) -> Split:
    """Objects whose boxes are 10 wide and 20 high around (5, 10)."""
    keypoints = np.array(points, np.float32).reshape(-1, 2, 3)
    count = len(keypoints)
    labels = Labels(
        np.zeros(count, np.int64),
        np.tile(np.array([[0, 0, 10, 20]], np.float32), (count, 1)),
        np.full(count, crowd),
        keypoints=keypoints,
        labelled=frozenset({"keypoint"}),
    )
    return Split("train", [ImageRecord(Path("a.png"), 20, 20, labels)], {0: "person"}, Problems(), points=2)


def test_the_usual_pose_is_the_median_of_labelled_points_in_boxes_from_the_centre() -> None:
    split = people(
        [[5, 10, 2], [0, 0, 0]],
        [[10, 10, 1], [5, 20, 2]],
        [[9, 15, 2], [5, 18, 2]],
        [[0, 0, 0], [0, 0, 0]],
    )
    found = usual_pose(split)
    assert found is not None
    pose, visible = found
    assert pose == pytest.approx(np.array([[0.4, 0.0], [0.0, 0.45]]))
    assert visible == pytest.approx(np.array([1.0, 2 / 3])), "an object without a point does not count"


def test_a_point_that_no_object_has_is_at_the_centre() -> None:
    found = usual_pose(people([[10, 10, 2], [7, 7, 0]]))
    assert found is not None
    assert found[0].tolist() == [[0.5, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("split", [people(), people([[0, 0, 0], [0, 0, 0]]), people([[1, 1, 2]] * 2, crowd=True)])
def test_without_labelled_points_there_is_no_pose(split: Split) -> None:
    assert usual_pose(split) is None


def test_points_of_images_that_are_not_labelled_for_keypoints_do_not_count() -> None:
    good, untrusted = people([[10, 10, 2], [5, 20, 2]]), people([[0, 0, 2], [0, 0, 0]])
    untrusted.records[0].labels.labelled = frozenset({"detect"})
    joined, alone = usual_pose(replace(good, records=good.records + untrusted.records)), usual_pose(good)
    assert joined is not None
    assert alone is not None
    assert [values.tolist() for values in joined] == [values.tolist() for values in alone]


def test_every_anchor_then_says_this_pose_of_its_box(make_model: MakeModel) -> None:
    branch = make_model().branches["keypoint"]
    assert isinstance(branch, KeypointBranch)
    pose, visible = torch.tensor([[0.4, 0.0], [-0.1, 0.45]]), torch.tensor([1.0, 0.25])
    branch.start_at(pose, visible)
    box = torch.tensor([[100.0, 50.0, 10.0, 20.0]])
    for layer in branch.layers:
        for raw in layer.get_parameter("bias").view(-1, branch.values):
            points, logits = points_of(raw[None], box)
            assert points[0].tolist() == [[pytest.approx(104), pytest.approx(50)], [pytest.approx(99), 59]]
            assert logits.sigmoid()[0].tolist() == pytest.approx([0.99, 0.25])


def test_only_a_fresh_branch_that_trains_on_labels_is_started(make_model: MakeModel, shapes: Path) -> None:
    split, model = load_split(shapes, "train"), make_model()
    assert start_branches(model, stage_of(model, train=["segment"]), split) == []
    assert start_branches(model, stage_of(model, tasks=["detect"]), split) == []
    unlabelled = {"hard": 0, "teachers": [{"weights": "t.pt", "output": {"keypoints": 1}}]}
    assert start_branches(model, stage_of(model, distill=unlabelled), split) == []
    assert start_branches(model, stage_of(model, objective="align"), split) == []
    names = start_branches(model, stage_of(model), split)
    assert names
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_branches(model, stage_of(model), split) == [], "it is not fresh any more"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_else_of_the_model_is_touched(make_model: MakeModel, shapes: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = set(start_branches(model, stage_of(model), load_split(shapes, "train")))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == names
    assert names == {f"branches.keypoint.layers.{level}.bias" for level in range(3)}


def test_without_labels_nothing_is_started(make_model: MakeModel, shapes: Path) -> None:
    split, model = load_split(shapes, "train"), make_model()
    none = np.zeros(0, np.int64)
    records = [replace(record, labels=record.labels.select(none)) for record in split.records]
    assert start_branches(model, stage_of(model), replace(split, records=records)) == []


def test_a_run_begins_with_the_usual_pose_and_its_average_with_it(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    found = usual_pose(load_split(shapes, "train"))
    assert found is not None
    plan = {"stages": [{"name": "one", "epochs": 1, "lr": 1e-9, "optimizer": "sgd"}]}
    run = train(make_model(), shapes, plan=plan, config=config, out=tmp_path, progress=False)
    state = torch.load(run.out / "state.pt", weights_only=True)
    for bias in (state["model"], {name.removeprefix("module."): value for name, value in state["ema"].items()}):
        raw = bias["branches.keypoint.layers.0.bias"].view(3, -1, 3)
        assert torch.allclose(raw[0, :, :2], torch.from_numpy(found[0]).float(), atol=1e-4)


def test_a_run_remembers_which_classes_have_points(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    split = load_split(shapes, "train")
    some = split.keypoint_classes
    assert some
    plan = {"stages": [{"name": "boxes", "epochs": 1, "tasks": ["detect"]}, {"name": "all", "epochs": 1}]}
    model = make_model()
    run = train(model, shapes, plan=plan, config=config, out=tmp_path, progress=False)
    again = load(run.last)
    for keypoint in (model.keypoint, load(run.best).keypoint, again.keypoint):
        assert (keypoint.classes, keypoint.sigmas, keypoint.skeleton) == (some, split.sigmas, [(0, 1)])
    picture = next((shapes.parent / "val").glob("*.png"))
    assert predict(run.last, picture, size=64, confidence=0)[0].skeleton == [(0, 1)]
    assert again.config.with_keypoints_of([7], [0.1, 0.2], None).tasks.keypoint.classes == [*some, 7]
    assert again.config.with_keypoints_of([], None, None) == again.config
    assert again.config.with_keypoints_of([7], [0.1, 0.2], None).tasks.keypoint.skeleton == [(0, 1)]
    assert again.config.with_keypoints_of([7], [0.1, 0.2], []).tasks.keypoint.skeleton == []


def test_classes_with_points_are_those_of_labels_that_count() -> None:
    split = people([[10, 10, 2], [5, 20, 0]])
    assert split.keypoint_classes == [0]
    split.records[0].labels.labelled = frozenset({"detect"})
    assert split.keypoint_classes == []
    assert people([[0, 0, 0], [0, 0, 0]]).keypoint_classes == []
    assert people().keypoint_classes == []
