"""Teachers that are asked about every so-manieth picture of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import ALL_TASKS, SCALED, distilled, distiller_of, shape_batch, shape_config, shape_model, teacher_file
from torch import Tensor

from mtyolo.config.plan import read_plan
from mtyolo.config.training import LossGains
from mtyolo.distill.lessons import LiveLessons
from mtyolo.distill.schedules import Turns
from mtyolo.distill.taught import levels_for, outputs_for
from mtyolo.errors import ConfigError
from mtyolo.model import Model, forward
from mtyolo.structures import Batch, Targets
from mtyolo.training.distilling import DistilledObjective
from mtyolo.training.objectives import TasksObjective

EVERYTHING: dict[str, Any] = {
    "output": {"kl": 1.0, "scaled": 1.0, "masks": 1.0, "keypoints": 1.0},
    "features": [{"method": "relative"}, {"method": "cwd", "layers": [6, 9]}],
}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return teacher_file(tmp_path, **ALL_TASKS)


def objective(weights: str, every: int, tasks: tuple[str, ...] = ("detect",)) -> tuple[DistilledObjective, Model]:
    torch.manual_seed(3)  # projectors
    student = shape_model(**ALL_TASKS, width=0.03)
    distiller = distiller_of(student, {"weights": weights, **EVERYTHING}, every=every, hard=0.5)
    return DistilledObjective(TasksObjective(tasks, LossGains()), distiller), student


def images_of(batch: Batch, images: slice) -> Batch:
    assert batch.images is not None
    targets = batch.targets.of_images(images)
    return Batch(targets, batch.indices[images], batch.letterboxes[images], batch.images[images])


@pytest.mark.parametrize(
    ("every", "images", "expected"),
    [
        (1, 4, [(0, 4), (0, 4), (0, 4)]),
        (2, 4, [(0, 2), (2, 4), (0, 2)]),
        (2, 3, [(0, 1), (1, 3), (0, 1)]),
        (3, 2, [(0, 0), (0, 1), (1, 2)]),
    ],
)
def test_in_turn_every_place_of_a_batch_is_taught(every: int, images: int, expected: list[tuple[int, int]]) -> None:
    turns = Turns(every)
    parts = [turns.take(images) for _ in range(3)]
    assert [(part.start, part.stop) for part in parts] == expected


def test_turns_go_on_where_they_were_saved() -> None:
    turns, other = Turns(3), Turns(3)
    turns.take(3)
    other.load_state_dict(turns.state_dict())
    assert [other.take(3).start for _ in range(3)] == [1, 2, 0]


def test_teachers_say_of_some_pictures_what_they_say_of_a_batch_of_these(weights: str, shapes: Path) -> None:
    """Terms and gradients, of outputs in all their parts and of features."""
    batch = shape_batch(shapes)
    half, student = objective(weights, 2)
    whole, same = objective(weights, 1)
    student.eval()
    same.eval()  # BatchNorm would see another batch
    for images in (slice(0, 2), slice(2, 4)):
        found, expected = half(student, batch), whole(same, images_of(batch, images))
        terms = [term for term in expected.components if term.startswith("distill.")]
        assert len(terms) == 6
        for term in terms:
            assert found.components[term].item() == pytest.approx(expected.components[term].item(), rel=1e-4), term
        found.tasks["distill"].backward()
        expected.tasks["distill"].backward()
        for (name, one), other in zip(student.named_parameters(), same.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-6), name


def test_labels_are_read_of_all_pictures(weights: str, shapes: Path) -> None:
    batch = shape_batch(shapes)
    (half, student), (whole, same) = objective(weights, 2), objective(weights, 1)
    found, expected = half(student, batch), whole(same, batch)
    assert found.tasks["detect"].item() == pytest.approx(expected.tasks["detect"].item(), rel=1e-5)
    assert found.tasks["distill"].item() != expected.tasks["distill"].item()


def test_a_batch_of_fewer_pictures_may_be_nobodys(weights: str, shapes: Path) -> None:
    three, student = objective(weights, 3)
    one = images_of(shape_batch(shapes), slice(0, 1))
    assert [set(three(student, one).tasks) for _ in range(3)] == [{"detect"}, {"detect"}, {"detect", "distill"}]


def test_gradients_of_some_images_have_the_layout_that_convolutions_take(shapes: Path) -> None:
    """And can be differentiated again, as by some balancers."""
    model = shape_model(**ALL_TASKS).to(memory_format=torch.channels_last)
    outputs = forward(model, shape_batch(shapes))
    for of in (outputs.detect[0], outputs.fused[8]):
        level = of.detach().requires_grad_()
        (some,) = levels_for({8: level}, slice(1, 3)).values()
        assert torch.equal(some, level[1:3])
        (gradient,) = torch.autograd.grad((some**3).sum(), level, create_graph=True)
        expected = torch.zeros_like(level)
        expected[1:3] = 3 * level[1:3] ** 2
        assert torch.allclose(gradient, expected)
        assert gradient.stride() == of.stride()
        (second,) = torch.autograd.grad(gradient.sum(), level)
        expected[1:3] = 6 * level.detach()[1:3]
        assert torch.allclose(second, expected)


def test_outputs_of_some_images_are_views(shapes: Path) -> None:
    outputs = forward(shape_model(**ALL_TASKS), shape_batch(shapes))
    some = outputs_for(outputs, slice(2, 3))
    assert some.segment is not None
    assert some.keypoint is not None
    assert some.keypoint.heatmaps is not None
    assert outputs.segment is not None
    for level in (*some.detect, *some.segment, *some.keypoint.points, some.keypoint.heatmaps, *some.fused.values()):
        assert all(len(tensor) == 1 for tensor in (level if isinstance(level, list) else [level]))
    assert some.segment.prototypes.data_ptr() == outputs.segment.prototypes[2].data_ptr()
    plain = outputs_for(forward(shape_model(), shape_batch(shapes)), slice(0, 1))
    assert (plain.segment, plain.keypoint) == (None, None)


def test_targets_of_some_images_count_these_from_zero() -> None:
    targets = Targets(
        torch.tensor([0, 1, 1, 3]),
        torch.tensor([5, 6, 7, 8]),
        torch.rand(4, 4),
        keypoints=torch.rand(4, 2, 3),
        labelled={"detect": torch.tensor([True, False, True, True])},
    )
    some = targets.of_images(slice(1, 3))
    assert some.image_index.tolist() == [0, 0]
    assert some.classes.tolist() == [6, 7]
    assert some.keypoints is not None
    assert targets.keypoints is not None
    assert torch.equal(some.keypoints, targets.keypoints[1:3])
    assert some.labelled["detect"].tolist() == [False, True]
    assert targets.image_index.tolist() == [0, 1, 1, 3]


def test_in_training_teachers_are_asked_about_half_of_the_pictures(
    weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[int]] = {1: [], 2: []}
    ask = LiveLessons.ask
    for every, counted in asked.items():

        def counting(lessons: LiveLessons, images: Tensor, *host: Tensor | None, into: list[int] = counted) -> Any:
            into.append(len(images))
            return ask(lessons, images, *host)

        monkeypatch.setattr(LiveLessons, "ask", counting)
        distill = {"teachers": [{"weights": weights, "output": SCALED}], "every": every, "three_times": True}
        run = distilled(shape_model(), shapes, tmp_path / str(every), distill, config=shape_config(epochs=2, batch=2))
        assert run.results[-1]["loss/distill"]
    assert set(asked[2]) == {1}
    assert sum(asked[1]) == 2 * sum(asked[2])


def refused(weights: str, message: str, **distill: Any) -> None:
    content = {"teachers": [{"weights": weights, "output": SCALED}], "every": 2} | distill
    with pytest.raises(ConfigError, match=message):
        read_plan({"stages": [{"name": "d", "distill": content}]})


def test_the_other_pictures_need_labels(weights: str) -> None:
    refused(weights, "every: the other pictures have only labels to learn from", hard=0)
    with pytest.raises(ConfigError, match="every: no task has labels for the other pictures"):
        objective(weights, 2, tasks=())
    objective(weights, 1, tasks=())


def test_what_every_can_not_be_is_said(weights: str) -> None:
    refused(weights, r"distill\.every: .*greater than", every=0)
    refused(weights, r"gradient \(of per-level, too\)", teachers=[{"weights": weights, "features": "per-level"}])


def test_a_batch_remembers_where_its_pictures_came_from(shapes: Path) -> None:
    batch = shape_batch(shapes)
    moved = batch.to("meta")
    assert moved.images is not None
    assert moved.images.device.type == "meta"
    assert moved.on_host is batch.images
    assert moved.to("meta").on_host is batch.images
