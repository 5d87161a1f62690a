"""Two teachers in one run: each teaches a branch of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import (
    ALL_TASKS,
    POINTS,
    SCALED,
    certain,
    distilled,
    distiller_of,
    shape_batch,
    shape_config,
    shape_model,
    teacher_file,
)
from torch import Tensor

from mtyolo.checkpoint import save_weights
from mtyolo.data.creatures import CLASSES
from mtyolo.distill.objective import Distiller, make_distiller
from mtyolo.distill.pictures import drawn
from mtyolo.model import Model
from mtyolo.structures import Batch


@pytest.fixture
def boxes(tmp_path: Path) -> dict[str, Any]:
    """Knows boxes alone."""
    return {"weights": teacher_file(tmp_path), "output": SCALED}


@pytest.fixture
def points(tmp_path: Path) -> dict[str, Any]:
    """Knows points, and one of the student's classes."""
    model = certain(shape_model(2, names={0: CLASSES[1]}, keypoint={}))
    return {"weights": str(save_weights(model, tmp_path / "points.safetensors")), "output": {"keypoints": 0.5}}


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, Any]:
    """Knows masks, from more prototypes than the student's."""
    segment = {"prototypes": 6, "channels": 8}
    return {"weights": teacher_file(tmp_path, 3, segment=segment), "output": {"masks": 2.0}}


def terms_of(distiller: Distiller, student: Model, batch: Batch) -> dict[str, Tensor]:
    assert batch.images is not None
    with distiller.watching(drawn(batch.images)) as seen:
        outputs = student(batch.images.float() / 255)
    return distiller(student, outputs, seen, batch.targets)


def taught(model: Model, loss: Tensor) -> set[str]:
    """Parts of the model that the loss moves."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    moved = [name for name, found in zip(names, gradients, strict=True) if found is not None and found.any()]
    return {name.split(".")[1] if name.startswith("branches.") else "graph" for name in moved}


def test_the_results_have_a_loss_of_each_teacher(
    boxes: dict[str, Any], points: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    distill, student = {"teachers": [boxes, points]}, shape_model(**ALL_TASKS)
    run = distilled(student, shapes, tmp_path / "run", distill, config=shape_config(epochs=2))
    assert len(run.results) == 2
    for row in run.results:
        values = {name: float(value or 0) for name, value in row.items() if name.startswith("loss/distill")}
        assert set(values) == {"loss/distill", "loss/distill.scaled", "loss/distill.keypoints"}
        assert all(math.isfinite(value) and value > 0 for value in values.values()), values
        both = values["loss/distill.scaled"] + values["loss/distill.keypoints"]
        assert values["loss/distill"] == pytest.approx(both, rel=1e-5)


def test_each_term_teaches_its_own_branch_and_what_is_before_it(
    boxes: dict[str, Any], points: dict[str, Any], masks: dict[str, Any], shapes: Path
) -> None:
    student = shape_model(**ALL_TASKS)
    terms = terms_of(distiller_of(student, boxes, points, masks), student, shape_batch(shapes))
    assert {name: taught(student, loss) for name, loss in terms.items()} == {
        "distill.scaled": {"graph", "detect"},
        "distill.keypoints": {"graph", "keypoint"},
        "distill.masks": {"graph", "segment"},
    }


def test_together_they_say_what_each_says_alone(
    boxes: dict[str, Any], points: dict[str, Any], masks: dict[str, Any], shapes: Path
) -> None:
    student, batch = shape_model(**ALL_TASKS), shape_batch(shapes)
    together = terms_of(distiller_of(student, boxes, points, masks), student, batch)
    alone = [terms_of(distiller_of(student, teacher), student, batch) for teacher in (boxes, points, masks)]
    assert [list(terms) for terms in alone] == [["distill.scaled"], ["distill.keypoints"], ["distill.masks"]]
    for terms in alone:
        for name, value in terms.items():
            assert float(together[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


def test_without_labels_points_are_judged_as_exactly_as_the_model_remembers(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, sigmas = shape_model(**ALL_TASKS), [0.05] * POINTS
    student.config = student.config.with_keypoints_of([0], sigmas, None)
    given: list[Any] = []

    def noting(*arguments: Any, **options: Any) -> Distiller:
        given.append(options["sigmas"])
        return make_distiller(*arguments, **options)

    monkeypatch.setattr("mtyolo.training.objectives.distilling.make_distiller", noting)
    teacher = {"weights": teacher_file(tmp_path, **ALL_TASKS), "output": {"keypoints": 1.0}}
    pictures = shapes.parent / "images" / "train"
    distilled(student, pictures, tmp_path / "run", {"teachers": [teacher], "hard": 0}, config=shape_config(1))
    assert set(map(tuple, given)) == {tuple(sigmas)}
