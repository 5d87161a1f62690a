"""What a plan says about features arrives in the terms: methods, layers, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shape_runs import certain, distiller_of, shape_batch, shape_model
from tiny_students import with_statistics
from torch import Tensor
from torch.nn import functional as F

from mtyolo.checkpoint import save_weights
from mtyolo.distill.compared import relative_error
from mtyolo.distill.feature_terms import detection_loss
from mtyolo.distill.features import FEATURE_LOSSES, PUBLISHED_WEIGHTS
from mtyolo.distill.objective import Distiller
from mtyolo.distill.pictures import drawn
from mtyolo.distill.teachers import recording
from mtyolo.model import Model
from mtyolo.structures import Batch

P3, P4, P5 = 17, 20, 23
"""Layers before the head of the official graph."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As wide as the student, so that nothing is projected."""
    return str(
        save_weights(with_statistics(certain(shape_model(1))), tmp_path_factory.mktemp("teacher") / "a.safetensors")
    )


@pytest.fixture
def student() -> Model:
    return shape_model()


@pytest.fixture
def batch(shapes: Path) -> Batch:
    return shape_batch(shapes)


def distiller_with(weights: str, student: Model, features: Any) -> Distiller:
    torch.manual_seed(0)
    return distiller_of(student, {"weights": weights, "features": features})


def terms_of(distiller: Distiller, student: Model, batch: Batch) -> dict[str, float]:
    assert batch.images is not None
    torch.manual_seed(0)  # mgd hides at random
    with distiller.watching(drawn(batch.images)) as seen:
        outputs = student(batch.images.float() / 255)
    found = distiller(student, outputs, seen, batch.targets)
    return {name: float(value.detach()) for name, value in found.items()}


def neck_of(model: Model, batch: Batch) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Layer -> what it gives, and the gradient of the detection loss by what the head takes of it."""
    assert batch.images is not None
    with recording({number: model.graph.layers[str(number)] for number in (P3, P4, P5)}) as seen:
        outputs = model(batch.images.float() / 255)
    loss = detection_loss(model, outputs, batch.targets)
    gradients = torch.autograd.grad(loss, list(outputs.fused.values()))
    return seen, dict(zip((P3, P4, P5), gradients, strict=True))


def test_per_level_is_values_and_places_at_p3_gradients_at_p4_and_channels_at_p5(
    weights: str, student: Model, batch: Batch
) -> None:
    distiller = distiller_with(weights, student, "per-level")
    teacher = distiller.courses[0].opened.teacher
    assert teacher is not None
    assert isinstance(teacher.source, Model)
    own, own_gradients = neck_of(student, batch)
    theirs, their_gradients = neck_of(teacher.source.requires_grad_(True), batch)
    teacher.source.requires_grad_(False)

    def distance(method: str, first: dict[int, Tensor], second: dict[int, Tensor], layer: int) -> float:
        channels = first[layer].shape[1]
        return float(FEATURE_LOSSES[method](channels, channels)(first[layer], second[layer]).detach())

    turned = F.cosine_similarity(own_gradients[P4].flatten(1), their_gradients[P4].flatten(1))
    expected = {
        "distill.fitnets": 0.4 * distance("fitnets", own, theirs, P3),
        "distill.spatial": 0.4 * PUBLISHED_WEIGHTS["spatial"] * distance("spatial", own, theirs, P3),
        "distill.gradient": 0.3 * float(1 - turned.mean()),
        "distill.channel": 0.3 * distance("channel", own, theirs, P5),
    }
    assert all(value > 0 for value in expected.values())
    assert terms_of(distiller, student, batch) == pytest.approx(expected, rel=1e-3)


def test_per_level_looks_at_no_layer_that_weighs_nothing(weights: str, student: Model) -> None:
    (course,) = distiller_with(weights, student, "per-level").courses
    found = {term.name: [(pair.student, pair.teacher) for pair in term.pairs] for term in course.features}
    assert found == {"fitnets": [(P3, P3)], "spatial": [(P3, P3)], "gradient": [(P4, P4)], "channel": [(P5, P5)]}


@pytest.mark.parametrize(
    ("features", "kept"),
    [
        ([{"method": "cwd", "levels": [0, 0, 0.5]}], {P5}),
        (
            [{"method": "cwd", "levels": [0, 0, 1]}, {"method": "channel", "layers": [P3, P4], "levels": [1, 0]}],
            {P3, P5},
        ),
        ([{"method": "gradient", "levels": [0, 1, 0]}], {P4}),
        ("per-level", {P3, P4, P5}),
    ],
    ids=["one", "two", "gradient", "per-level"],
)
def test_of_the_teachers_layers_those_are_kept_that_weigh_something(
    features: Any, kept: set[int], weights: str, student: Model, batch: Batch, tmp_path: Path
) -> None:
    cached = {"weights": weights, "features": features, "cache": True, "folder": str(tmp_path / "cache")}
    distiller = distiller_of(student, cached)
    terms_of(distiller, student, batch)
    teacher = distiller.courses[0].opened.teacher
    assert teacher is not None
    assert teacher.recorded.keys() == kept
    one = load_file(next((tmp_path / "cache").glob("*.safetensors")))
    assert {int(name.split(".")[1]) for name in one if name.startswith("feature.")} == kept


@pytest.mark.parametrize("cache", [False, True], ids=["asked", "cached"])
def test_pooled_maps_of_both_are_compared(
    cache: bool, weights: str, student: Model, batch: Batch, tmp_path: Path
) -> None:
    teaching = {"weights": weights, "features": [{"method": "relative"}], "pool": 4}
    kept = {"cache": cache, "folder": str(tmp_path / "cache")}
    distiller = distiller_of(student, teaching | (kept if cache else {}))
    teacher = distiller.courses[0].opened.teacher
    assert teacher is not None
    assert isinstance(teacher.source, Model)
    (own, _), (theirs, _) = neck_of(student, batch), neck_of(teacher.source.requires_grad_(True), batch)
    sides = {P3: 4, P4: 4, P5: 2}  # of the last, 2 x 2 positions are all there are
    means = [[F.avg_pool2d(maps[layer], side).detach() for layer, side in sides.items()] for maps in (own, theirs)]
    expected = sum(float(relative_error(*pair)) for pair in zip(*means, strict=True))
    assert terms_of(distiller, student, batch) == pytest.approx({"distill.relative": expected}, rel=1e-2)


def test_a_sum_over_pooled_positions_weighs_as_much_as_over_all(weights: str, student: Model) -> None:
    methods = sorted(FEATURE_LOSSES.keys() - {"gradient"})
    terms = [*({"method": method} for method in methods), {"method": "mgd", "weight": 3.0}]
    distiller = distiller_of(student, {"weights": weights, "features": terms, "pool": 4})
    *found, chosen = [{pair.weight for pair in term.pairs} for term in distiller.courses[0].features]
    assert found == [{PUBLISHED_WEIGHTS[method] * (16 if method == "mgd" else 1)} for method in methods]
    assert chosen == {48.0}


def test_outputs_that_nothing_looks_at_are_not_read(weights: str, student: Model, batch: Batch, tmp_path: Path) -> None:
    assert batch.images is not None
    teaching = {"weights": weights, "features": [{"method": "cwd"}]}
    teaching |= {"cache": True, "folder": str(tmp_path / "cache")}
    plain, halving = distiller_of(student, teaching), distiller_of(student, teaching, three_times=True)
    found = [distiller.courses[0].opened.lessons.ask(drawn(batch.images))() for distiller in (plain, halving)]
    assert [len(lesson.outputs.detect) for lesson in found] == [0, 3], "three_times judges the teacher's own loss"
    assert all(found[0].features[layer].equal(found[1].features[layer]) for layer in (P3, P4, P5))
    assert terms_of(plain, student, batch) == terms_of(halving, student, batch)


@pytest.mark.parametrize("method", FEATURE_LOSSES)
def test_a_loss_is_linear_in_its_weight(method: str, weights: str, student: Model, batch: Batch) -> None:
    def loss(**options: Any) -> float:
        distiller = distiller_with(weights, student, [{"method": method, **options}])
        return terms_of(distiller, student, batch)[f"distill.{method}"]

    one = loss(weight=1)
    assert one > 0
    assert loss(weight=2.5) == pytest.approx(2.5 * one, rel=1e-3)
    assert loss() == pytest.approx(PUBLISHED_WEIGHTS[method] * one, rel=1e-3)


@pytest.mark.parametrize("method", sorted(FEATURE_LOSSES.keys() - {"mgd"}))
def test_a_loss_is_linear_in_the_weights_of_its_levels(method: str, weights: str, student: Model, batch: Batch) -> None:
    """Not of mgd, which hides other positions where levels are left out."""

    chosen = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0.4, 2, 0.3)]
    terms = [{"method": method, "weight": 1, "levels": levels} for levels in chosen]
    *alone, together, weighted = terms_of(distiller_with(weights, student, terms), student, batch).values()
    assert len({round(value, 9) for value in alone}) == 3, "levels differ"
    assert together == pytest.approx(sum(alone), rel=1e-3)
    assert weighted == pytest.approx(0.4 * alone[0] + 2 * alone[1] + 0.3 * alone[2], rel=1e-3)
