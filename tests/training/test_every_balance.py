"""Every word of `balance` in the real loop: beside alignment, beside teachers, where labels say nothing of a task."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import Steps, batches_of, steps_of

from mtyolo.api import build
from mtyolo.balance import SCALARIZERS
from mtyolo.checkpoint import save_weights
from mtyolo.config.plan import BALANCES
from mtyolo.errors import ConfigError
from mtyolo.model import Model

MakeModel = Callable[[], Model]

TASKS = {"detect": {}, "segment": {"prototypes": 4, "channels": 8}, "keypoint": {}}
WITHOUT_WEIGHTS = ("graddrop", "config")
"""They choose a direction, and no weight of any task."""


def steps_or_skip(model: Model, data: Path, out: Path, word: str, **stage: Any) -> Steps:
    try:
        return steps_of(model, data, out, balance=word, **stage)
    except ConfigError as error:
        if "mtyolo[balance]" not in str(error):
            raise
        pytest.skip(str(error))


def assert_finite(steps: Steps, word: str, means: Mapping[str, float], weighed: set[str]) -> None:
    """The last step was made, with gradients and weights that are numbers."""
    assert steps.work.guard.skipped == 0
    for name, gradient in steps.gradients[-1].items():
        assert gradient.isfinite().all(), name
    for name, tensor in steps.state.model.state_dict().items():
        assert tensor.isfinite().all(), name
    weights = {name.removeprefix("weight/"): means[name] for name in means if name.startswith("weight/")}
    assert set(weights) == weighed
    assert all(math.isnan(value) if word in WITHOUT_WEIGHTS else math.isfinite(value) for value in weights.values())


def size_of(steps: Steps, prefix: str) -> float:
    """Of the last step's gradient in a part of the model."""
    return sum(float(one.abs().sum()) for name, one in steps.gradients[-1].items() if name.startswith(prefix))


@pytest.fixture(scope="module")
def adapted(test_data: Path, shapes: Path) -> Model:
    """An untrained extractor before YOLOv5n, with all three tasks."""
    torch.manual_seed(0)
    extractor = {"name": "timm/mobilenetv2_035", "weights": "none"}
    detector = {"graph": "yolov5n.yaml", "weights": str(test_data / "weights" / "yolov5n.pt")}
    config = {"extractor": extractor, "adapters": {"type": "conv"}, "detector": detector, "tasks": TASKS}
    return build(config, data=shapes)


@pytest.mark.parametrize("word", BALANCES)
def test_every_word_steps_beside_alignment(word: str, adapted: Model, shapes: Path, tmp_path: Path) -> None:
    steps = steps_or_skip(copy.deepcopy(adapted), shapes, tmp_path, word, align=1.0, freeze=["extractor"])
    means = steps.step(batches_of(shapes, 2)[0])
    assert means["loss/align"] > 0
    assert_finite(steps, word, means, {*TASKS, "align"})
    for part in ("adapters.", "graph.", *(f"branches.{task}." for task in TASKS)):
        assert size_of(steps, part) > 0, f"{part}: alignment leaves the tasks their pull"


@pytest.mark.parametrize("word", BALANCES)
def test_a_loss_that_reaches_nothing_that_trains_is_left_out(
    word: str, adapted: Model, shapes: Path, tmp_path: Path
) -> None:
    stage = {"align": 1.0, "freeze": ["extractor", "adapters"]}
    steps = steps_or_skip(copy.deepcopy(adapted), shapes, tmp_path, word, **stage)
    means = steps.step(batches_of(shapes, 2)[0])
    assert means["loss/align"] > 0
    weighed = {*TASKS, "align"} if word in SCALARIZERS else {*TASKS}  # by losses, not by gradients
    assert_finite(steps, word, means, weighed)


@pytest.fixture(scope="module")
def tiny(make_model: MakeModel) -> Model:
    return make_model()


@pytest.fixture(scope="module")
def teacher(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = make_model()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return str(save_weights(model, tmp_path_factory.mktemp("teacher") / "teacher.safetensors"))


@pytest.mark.parametrize("word", BALANCES)
def test_every_word_steps_beside_teachers(word: str, teacher: str, tiny: Model, shapes: Path, tmp_path: Path) -> None:
    features = [{"method": "mgd"}, {"method": "cwd", "layers": [4, 6]}]
    lessons = {"weights": teacher, "output": {"scaled": 1.0}, "features": features}
    steps = steps_or_skip(copy.deepcopy(tiny), shapes, tmp_path, word, distill={"teachers": [lessons]})
    means = steps.step(batches_of(shapes, 2)[0])
    assert means["loss/distill"] > 0
    assert_finite(steps, word, means, {*TASKS, "distill"})
    assert all(one.grad is None for one in steps.work.parameters), "the step is over"
    for part in ("graph.layers.0.", "graph.layers.23.", *(f"branches.{task}." for task in TASKS)):
        assert size_of(steps, part) > 0, part


@pytest.mark.parametrize("word", BALANCES)
def test_a_first_batch_whose_labels_say_nothing_of_keypoints_unsettles_no_word(
    word: str, tiny: Model, shapes: Path, tmp_path: Path
) -> None:
    steps = steps_or_skip(copy.deepcopy(tiny), shapes, tmp_path, word)
    first, second, *_ = batches_of(shapes)
    assert first.targets.keypoints is not None
    first.targets.keypoints.zero_()
    assert first.targets.labelled["keypoint"].all()
    means = steps.step(first)
    assert means["loss/keypoint"] == 0
    assert_finite(steps, word, means, {name.removeprefix("weight/") for name in means if name.startswith("weight/")})
    assert size_of(steps, "graph.") > 0, "the other tasks teach all the same"
    means = steps.step(second)
    assert means["loss/keypoint"] > 0
    assert_finite(steps, word, means, set(TASKS))
    assert len(steps.gradients) == 2
    assert size_of(steps, "branches.keypoint.") > 0
