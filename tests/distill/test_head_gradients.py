"""Derivatives of the detection loss by what the head takes, against autograd through the whole maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shape_runs import distiller_of, shape_batch, shape_model
from test_low_rank import written_out
from tiny_students import with_statistics
from torch import Tensor

from mtyolo.checkpoint import save_weights
from mtyolo.distill.feature_terms import detection_loss
from mtyolo.distill.head_gradients import Side, detection_gradients
from mtyolo.distill.pictures import drawn
from mtyolo.model import Model, pixels
from mtyolo.structures import Batch, Outputs, Targets


@pytest.fixture
def batch(shapes: Path) -> Batch:
    return shape_batch(shapes)


def whole(model: Model, batch: Batch, targets: Targets) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the head takes, fine to coarse, what it makes, and the loss's derivatives by the first, of autograd."""
    assert batch.images is not None
    outputs = model(pixels(batch.images))
    fused = list(outputs.fused.values())
    loss = detection_loss(model, outputs, targets)
    return fused, list(outputs.detect), list(torch.autograd.grad(loss, fused, create_graph=True))


def gradients(side: Side, targets: Targets) -> list[Tensor]:
    """Written out, as maps."""
    (found,) = detection_gradients([side], targets)
    return [
        written_out(maps).movedim(1, -1).unflatten(-1, side.levels[level].shape[2:4]) for level, maps in found.items()
    ]


def some_unlabelled(targets: Targets) -> Targets:
    targets.labelled = {"detect": torch.tensor([True, False, True, True])}
    return targets


def small_ones(targets: Targets) -> Targets:
    """Nothing matches at the coarsest level."""
    targets.boxes_cxcywh[:, 2:] = 0.04
    return targets


def twice(targets: Targets) -> Targets:
    """Two objects claim the same cells, the second with another class and size."""
    return Targets(
        targets.image_index.repeat(2),
        torch.cat((targets.classes, (targets.classes + 1) % 2)),
        torch.cat((targets.boxes_cxcywh, targets.boxes_cxcywh * torch.tensor([1, 1, 0.8, 1.2]))),
        labelled=targets.labelled,
    )


@pytest.mark.parametrize("raw", [False, True], ids=["from features", "from raw maps"])
@pytest.mark.parametrize("change", [lambda targets: targets, some_unlabelled, small_ones, twice])
def test_it_is_what_autograd_makes_and_so_is_its_derivative(change, raw: bool, batch: Batch) -> None:  # type: ignore[no-untyped-def]
    model, targets = shape_model().eval(), change(batch.targets)
    fused, maps, expected = whole(model, batch, targets)
    found = gradients(Side(model, dict(enumerate(maps if raw else fused)), raw), targets)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-8)
        assert one.any()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pulls = [
        torch.autograd.grad(
            sum(g.mul(1e3).square().sum() for g in those), learned, retain_graph=True, allow_unused=True
        )  # type: ignore[arg-type]
        for those in (found, expected)
    ]
    assert any(pull is not None and pull.any() for pull in pulls[0])
    for own, wanted in zip(*pulls, strict=True):
        assert (own is None) == (wanted is None)
        if own is not None and wanted is not None:
            torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_features_that_nothing_learns_from_get_a_gradient_without_a_history(batch: Batch) -> None:
    model = shape_model().eval()
    fused, _, expected = whole(model, batch, batch.targets)
    wanted = expected[1].detach()
    (found,) = gradients(Side(model.requires_grad_(False), {1: fused[1].detach().half()}), batch.targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=1e-3 * float(wanted.abs().max()))


def test_of_images_that_are_no_squares_it_is_the_same(batch: Batch) -> None:
    assert batch.images is not None
    model, narrow = shape_model().eval(), replace(batch, images=batch.images[..., :32].contiguous())
    fused, maps, expected = whole(model, narrow, narrow.targets)
    for side in (Side(model, dict(enumerate(fused))), Side(model, dict(enumerate(maps)), raw=True)):
        for one, wanted in zip(gradients(side, narrow.targets), expected, strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-8)


def test_each_side_has_the_matches_of_its_own_anchors(batch: Batch) -> None:
    """Beside another as by itself."""
    models = [shape_model(seed).eval() for seed in range(2)]
    models[1].anchors.mul_(1.7)
    sides = [Side(model, dict(enumerate(whole(model, batch, batch.targets)[0]))) for model in models]
    for side, together in zip(sides, detection_gradients(sides, batch.targets), strict=True):
        (alone,) = detection_gradients([side], batch.targets)
        for level, maps in alone.items():
            torch.testing.assert_close(written_out(together[level]), written_out(maps))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    precision: torch.dtype, batch: Batch, tmp_path: Path
) -> None:
    """At no level: also where a finer one leads to the coarser."""
    assert batch.images is not None
    student = with_statistics(shape_model())
    weights = str(save_weights(student, tmp_path / "same.safetensors"))
    distiller = distiller_of(student, {"weights": weights, "features": [{"method": "gradient"}]})
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        with distiller.watching(drawn(batch.images)) as seen:
            outputs = student(pixels(batch.images))
        (found,) = distiller(student, outputs, seen, batch.targets).values()
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    pulls = torch.autograd.grad(found, learned, allow_unused=True)
    assert max(float(pull.abs().max()) for pull in pulls if pull is not None) < 1e-3


Judge = Callable[[Targets], Tensor]
"""The term for a batch's pictures with these targets."""


@pytest.fixture
def judged(batch: Batch, tmp_path: Path) -> tuple[Outputs, Judge]:
    """What a student gives, and how another teaches it."""
    assert batch.images is not None
    student = shape_model()
    weights = str(save_weights(shape_model(1), tmp_path / "other.safetensors"))
    distiller = distiller_of(student, {"weights": weights, "features": [{"method": "gradient"}]})
    with distiller.watching(drawn(batch.images)) as seen:
        outputs = student(pixels(batch.images))

    def judge(targets: Targets) -> Tensor:
        (found,) = distiller(student, outputs, seen, targets).values()
        return found

    return outputs, judge


def test_without_labels_nothing_leads_to_the_term_and_without_objects_background_does(
    batch: Batch, judged: tuple[Outputs, Judge]
) -> None:
    """A zero that something leads to would let it decay."""
    _, judge = judged
    no, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    found = judge(Targets(no, no, nothing, labelled={"detect": torch.ones(4) > 0}))
    assert found.requires_grad
    assert float(found.detach()) > 0
    batch.targets.labelled["detect"] = torch.zeros(4, dtype=torch.bool)
    found = judge(batch.targets)
    assert not found.requires_grad
    assert float(found) == 0


def test_balancers_find_the_term_at_what_the_branches_see(batch: Batch, judged: tuple[Outputs, Judge]) -> None:
    outputs, judge = judged
    pulls = torch.autograd.grad(judge(batch.targets), list(outputs.fused.values()))
    assert all(pull.any() for pull in pulls)
