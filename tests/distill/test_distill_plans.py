"""Each stage of the plans with teachers: exactly what moves, and that all else stands still."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from shape_runs import ALL_TASKS, NAMES, POINTS, SIDE, certain, shape_config, shape_model
from tiny_families import family_file
from tiny_students import with_statistics
from torch import Tensor

from mtyolo.assembly import build
from mtyolo.checkpoint import save_weights
from mtyolo.config.model import shipped_configs
from mtyolo.config.plan import PlanConfig, read_plan
from mtyolo.config.reading import read_yaml
from mtyolo.config.training import AugmentConfig
from mtyolo.data.creatures import CLASSES
from mtyolo.data.shapes import make_shapes
from mtyolo.model import Model
from mtyolo.training.train import train


class Moves(NamedTuple):
    """Prefixes of parameters that learn, of norms whose statistics follow, and of both that do not."""

    learn: tuple[str, ...]
    follow: tuple[str, ...]
    frozen: tuple[str, ...] = ()


ALL = Moves(("",), ("",))
FIRST_BLOCKS = tuple(f"graph.layers.{number}." for number in (2, 4, 6))

WHAT_MOVES = {
    "distill-outputs": [ALL],
    "distill-in-two-steps": [ALL],
    "distill-features": [Moves(("",), ("",), FIRST_BLOCKS), ALL],
    "distill-two-teachers": [Moves(("branches.",), ("branches.",)), ALL],
    "distill-adapters": [Moves(("adapters.",), ("adapters.",))],
    # Without labels nobody teaches masks and points.
    "distill-unlabelled": [Moves(("graph.", "branches.detect."), ("graph.",))],
}


def with_adapters() -> Model:
    torch.manual_seed(0)
    graph = dict(read_yaml(shipped_configs() / "yolov5n.yaml").content) | {
        "width_multiple": 0.05,
        "depth_multiple": 0.1,
    }
    extractor = {"name": "timm/mobilenetv2_035", "weights": "none"}
    config = {"extractor": extractor, "adapters": {"type": "conv"}, "detector": {"graph": graph}}
    return build(config, names=NAMES)


def all_tasks() -> Model:
    return shape_model(**ALL_TASKS)


STUDENTS = {"distill-adapters": with_adapters}
"""Where it is not a model of images, of all tasks."""


@pytest.fixture(scope="module")
def large_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creatures that the coarsest anchors answer for, too: all of every branch has something to learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtyolo.data.shapes.SMALLEST", 0.15)
        patch.setattr("mtyolo.data.shapes.LARGEST", 0.4)
        return make_shapes(tmp_path_factory.mktemp("large"), train=6, val=4, size=SIDE)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In place of the files that the plans name: a wider YOLOv5, and an ultralytics pose model that knows fewer
    classes."""
    folder = tmp_path_factory.mktemp("teachers")
    detector = save_weights(certain(shape_model(1, width=0.1)), folder / "yolov5s.safetensors")
    pose = family_file(folder, "yolo11n-pose.yaml", names={0: CLASSES[0], 1: "person"}, kpt_shape=[POINTS, 3])
    return {
        "yolov5n.pt": str(detector),
        "yolov5s.pt": str(detector),
        "medium": str(detector),
        "yolo11n-pose.pt": str(pose),
    }


def with_teachers(plan: PlanConfig, teachers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The plan's stages, an epoch each."""
    stages = plan.model_dump(mode="json")["stages"]
    for stage in stages:
        stage |= {"epochs": 1, "share": None}
        for teacher in stage["distill"]["teachers"]:
            teacher["weights"] = teachers[teacher["weights"]]
    return [dict(stage) for stage in stages]


def tensors(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def under(names: set[str], prefixes: tuple[str, ...], without: tuple[str, ...]) -> set[str]:
    return {name for name in names if name.startswith(prefixes) and not name.startswith(without or ("-",))}


def test_every_plan_with_teachers_is_here() -> None:
    assert {path.stem for path in (shipped_configs() / "plans").glob("distill-*.yaml")} == set(WHAT_MOVES)


@pytest.mark.parametrize("name", sorted(WHAT_MOVES))
def test_exactly_what_a_stage_names_moves(
    name: str, teachers: dict[str, str], large_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # caches lie where the run is
    model, plan = with_statistics(STUDENTS.get(name, all_tasks)()), read_plan(name)
    config = shape_config(lr=0.1, augment=AugmentConfig(**dict.fromkeys(AugmentConfig.model_fields, 0.0)))
    parameters = {key for key, _ in model.named_parameters()}
    statistics = {key for key, _ in model.named_buffers() if "anchors" not in key}
    for stage, moves in zip(with_teachers(plan, teachers), WHAT_MOVES[name], strict=True):
        before = tensors(model)
        out = tmp_path / stage["name"]
        run = train(model, large_shapes, plan={"stages": [stage]}, config=config, out=out, progress=False)
        after = tensors(model)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed & parameters == under(parameters, moves.learn, moves.frozen), stage["name"]
        assert changed - parameters == under(statistics, moves.follow, moves.frozen), stage["name"]
        losses = {key: float(value or 0) for key, value in run.results[-1].items() if key.startswith("loss/distill.")}
        assert losses
        assert min(losses.values()) > 0, losses
