"""Masks and points of ultralytics teachers in the student's rows: what their own heads say at the same cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import SIDE, distiller_of
from tiny_families import NAMES, family_file
from tiny_students import tiny_model
from torch import Tensor

from mtyolo.config.distill import TeacherConfig
from mtyolo.distill.conversion import layout_of
from mtyolo.distill.layout import EDGE, boxes_at, geometry
from mtyolo.distill.pictures import drawn
from mtyolo.distill.teachers import Teacher, open_teacher
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.graph.blocks import process_left_as_it_was
from mtyolo.graph.families import FamilyModel, FamilyOutputs, open_family
from mtyolo.model import Model
from mtyolo.structures import Outputs, Targets
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.maps import joined_rows

FITS = 0.01
"""Objectness of a row whose anchor can express the box; where it can not, it is EDGE."""


def student_with(**tasks: Any) -> Model:
    return tiny_model(NAMES, segment={"prototypes": 4, "channels": 8}, keypoint={}, **tasks)


def teacher_from(weights: Path, student: Model, term: str, size: int | None = None) -> Teacher:
    config = TeacherConfig.model_validate({"weights": str(weights), "output": {term: 1.0}, "size": size})
    return open_teacher(config, student, SIDE)


def noise(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def own_words(teacher: Teacher, images: Tensor) -> FamilyOutputs:
    """What the ultralytics model says of the pixels that its teacher gives it."""
    assert isinstance(teacher.source, FamilyModel)
    side = teacher.size or images.shape[-1]
    pixels = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
    with torch.no_grad():
        found = teacher.source.network(pixels)[0]
    rows, prototypes = found if isinstance(found, tuple) else (found, None)
    return FamilyOutputs(rows.transpose(1, 2), prototypes)


def at_the_students_cells(rows: Tensor, classes: int, side: int, own: int = SIDE, anchors: int = 3) -> Tensor:
    """[B, R, values] in the order of the student's rows, for each the surest of the teacher's cells that fall into
    its own. side, own: of both inputs."""
    found, start = [], 0
    for stride in (8, 16, 32):
        cells, many = own // stride, side // stride
        level = rows[:, start : start + many**2].unflatten(1, (many, many))
        start += many**2
        each = many // cells
        groups = level.unflatten(1, (cells, each)).unflatten(3, (cells, each)).transpose(2, 3).flatten(3, 4)
        best = groups[..., 4 : 4 + classes].amax(-1).argmax(-1)
        chosen = groups.gather(3, best[..., None, None].expand(-1, -1, -1, 1, rows.shape[-1]))[..., 0, :]
        found.append(chosen.flatten(1, 2).repeat(1, anchors, 1))
    return torch.cat(found, 1)


def boxes_of(outputs: Outputs, student: Model) -> tuple[Tensor, Tensor]:
    """Boxes [B, R, 4] in pixels that rows say, and which rows can say the teacher's."""
    raw, side = joined_rows(outputs.detect), 8 * outputs.detect[0].shape[2]
    place = geometry(layout_of(student), (side, side))
    return torch.stack([boxes_at(one[:, :4], place) for one in raw]), raw[..., 4].sigmoid() > FITS


def assert_boxes_and_scores_agree(outputs: Outputs, student: Model, expected: Tensor, scale: float) -> None:
    boxes, fits = boxes_of(outputs, student)
    assert int(fits.sum()) > 50, "most rows have something to compare"
    assert torch.allclose(boxes[fits], expected[fits][:, :4] * scale, atol=0.05)
    scores = joined_rows(outputs.detect)[..., 4:].sigmoid()
    wanted = expected[fits][:, 4 : 4 + len(student.names)]
    assert torch.allclose((scores[..., :1] * scores[..., 1:])[fits], wanted, atol=3 * EDGE)


def binary_masks(coefficients: Tensor, prototypes: Tensor, boxes_xyxy: Tensor, side: int) -> Tensor:
    with process_left_as_it_was():
        from ultralytics.utils.ops import process_mask
    found: Tensor = process_mask(prototypes, coefficients, boxes_xyxy, (side, side))
    return found.bool()


@pytest.mark.parametrize(
    ("graph", "size"), [("yolov8n.yaml", None), ("yolov10n.yaml", None), ("yolov8n.yaml", 128), ("yolo26n.yaml", None)]
)
def test_boxes_in_the_students_rows_are_those_of_the_ultralytics_model(
    graph: str, size: int | None, tmp_path: Path
) -> None:
    """Of heads that match one to one, too, it is the other one that teaches: all cells say what they see."""
    student, images, weights = student_with(), noise(), family_file(tmp_path, graph)
    teacher, side = teacher_from(weights, student, "scaled", size), size or SIDE
    own = one_to_many(weights, torch.nn.functional.interpolate(images, (side, side), mode="bilinear"))
    assert_boxes_and_scores_agree(teacher(images), student, at_the_students_cells(own, len(NAMES), side), SIDE / side)


def test_a_head_that_matches_one_to_one_by_default_teaches_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some versions of the package."""
    weights = family_file(tmp_path, "yolov10n.yaml")
    expected = one_to_many(weights, noise())
    with process_left_as_it_was():
        from ultralytics.nn.modules import v10Detect
    monkeypatch.setattr(v10Detect, "_end2end", True, raising=False)
    assert torch.allclose(open_family(weights)(noise()).rows, expected, atol=1e-3)


def one_to_many(weights: Path, pixels: Tensor) -> Tensor:
    """[B, rows, 4 + classes] of the file as the package itself loads it, xywh."""
    network = torch.load(weights, weights_only=False)["model"].eval()
    head = network.model[-1]
    with torch.no_grad():
        _, said = network(pixels)
        raw = said.get("one2many", said)
        assert not torch.equal(raw["scores"], said.get("one2one", {"scores": torch.zeros(1)})["scores"])
        distances = head.dfl(raw["boxes"])
        anchors, strides = head.anchors, head.strides
        x1y1, x2y2 = anchors - distances[:, :2], anchors + distances[:, 2:]
        boxes = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * strides
    return torch.cat((boxes, raw["scores"].sigmoid()), 1).transpose(1, 2)


@pytest.mark.parametrize(
    ("graph", "size"), [("yolov8n-seg.yaml", None), ("yolo11n-seg.yaml", 128), ("yolo26n-seg.yaml", None)]
)
def test_masks_in_the_students_rows_are_those_of_the_ultralytics_model(
    graph: str, size: int | None, tmp_path: Path
) -> None:
    student, images, side = student_with(), noise(), size or SIDE
    teacher = teacher_from(family_file(tmp_path, graph), student, "masks", size)
    outputs, own = teacher(images), own_words(teacher, images)
    assert outputs.segment is not None
    assert own.prototypes is not None
    expected = at_the_students_cells(own.rows, len(NAMES), side)
    assert_boxes_and_scores_agree(outputs, student, expected, SIDE / side)
    coefficients = joined_rows(outputs.segment.coefficients)
    for image in range(len(images)):
        boxes = cxcywh_to_xyxy(expected[image, :, :4])
        wanted = binary_masks(expected[image, :, 6:], own.prototypes[image], boxes, side)
        found = binary_masks(coefficients[image], outputs.segment.prototypes[image], boxes, side)
        assert torch.equal(found, wanted)
        filled = wanted.flatten(1).float().mean(1)
        assert float(filled.std()) > 0.01, "masks differ"


@pytest.mark.parametrize(
    ("graph", "values", "size"),
    [
        ("yolov8n-pose.yaml", 3, None),
        ("yolo11n-pose.yaml", 3, 128),
        ("yolov8n-pose.yaml", 2, None),
        ("yolo26n-pose.yaml", 3, None),
    ],
)
def test_points_in_the_students_rows_are_those_of_the_ultralytics_model(
    graph: str, values: int, size: int | None, tmp_path: Path
) -> None:
    student, images, side = student_with(), noise(), size or SIDE
    weights = family_file(tmp_path, graph, kpt_shape=[2, values])
    teacher = teacher_from(weights, student, "keypoints", size)
    assert teacher.keypoints == student.keypoints == 2
    outputs = teacher(images)
    expected = at_the_students_cells(own_words(teacher, images).rows, len(NAMES), side)
    assert_boxes_and_scores_agree(outputs, student, expected, SIDE / side)
    assert_points_agree(outputs, student, expected[..., 6:].unflatten(-1, (2, values)), SIDE / side)


def assert_points_agree(outputs: Outputs, student: Model, expected: Tensor, scale: float) -> None:
    """expected: [B, R, K, 2 or 3] in the teacher's pixels. Without visibility, points count as seen."""
    assert outputs.keypoint is not None
    boxes, fits = boxes_of(outputs, student)
    points, seen = points_of(joined_rows(outputs.keypoint.points)[fits], boxes[fits])
    wanted = expected[fits] * scale
    assert torch.allclose(points, wanted[..., :2], atol=0.1, rtol=2e-3)
    if expected.shape[-1] == 3:
        assert torch.allclose(seen.sigmoid(), expected[fits][..., 2], atol=1e-4)
    else:
        assert float(seen.sigmoid().min()) > 0.99


@pytest.mark.parametrize(("graph", "term"), [("yolo11n-seg.yaml", "masks"), ("yolo11n-pose.yaml", "keypoints")])
def test_what_an_ultralytics_teacher_says_teaches_its_branch(graph: str, term: str, tmp_path: Path) -> None:
    student = student_with()
    weights = family_file(tmp_path, graph, kpt_shape=[2, 3])
    distiller = distiller_of(student, {"weights": str(weights), "output": {term: 1.0}})
    images = (noise() * 255).to(torch.uint8)
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    with distiller.watching(drawn(images)) as seen:
        outputs = student(images.float() / 255)
    loss = distiller(student, outputs, seen, nothing)[f"distill.{term}"]
    loss.backward()
    assert float(loss.detach()) > 0
    branch = student.branches["segment" if term == "masks" else "keypoint"]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in branch.parameters())
    assert all(parameter.grad is None for parameter in student.branches["detect"].parameters())


def test_points_of_the_official_pose_model_are_found_in_the_students_rows(test_data: Path, pictures: Tensor) -> None:
    """YOLO11n-pose on photos, to a student of the same seventeen points."""
    student = tiny_model({0: "person"}, points=17, keypoint={})
    content = {"weights": str(test_data / "weights" / "yolo11n-pose.pt"), "output": {"keypoints": 1.0}}
    teacher = open_teacher(TeacherConfig.model_validate(content), student, 320)
    assert isinstance(teacher.source, FamilyModel)
    images = pictures.float() / 255
    outputs, rows = teacher(images), own_words(teacher, images).rows
    expected = at_the_students_cells(rows, 1, 320, 320)
    assert_boxes_and_scores_agree(outputs, student, expected, 1.0)
    assert_points_agree(outputs, student, expected[..., 5:].unflatten(-1, (17, 3)), 1.0)
    _, fits = boxes_of(outputs, student)
    assert ((expected[..., 4] > 0.8) & fits).any(1).all(), "there are people in both"
