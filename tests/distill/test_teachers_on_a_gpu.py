"""Teachers on a GPU compute in half precision; what they say, and what is learned from it, is single."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import ALL_TASKS, POINTS, SCALED, SIDE, certain, distilled, shape_batch, shape_config, shape_model
from tiny_families import family_file
from tiny_students import with_statistics
from torch import Tensor, nn

from mtyolo.checkpoint import save_weights
from mtyolo.config.distill import DistillConfig, TeacherConfig
from mtyolo.config.training import LossGains
from mtyolo.data.creatures import CLASSES
from mtyolo.distill.features import FEATURE_LOSSES
from mtyolo.distill.objective import OUTPUT_TERMS, make_distiller
from mtyolo.distill.saved import SavedLessons
from mtyolo.distill.teachers import Lesson, Teacher, neck_of, open_teacher
from mtyolo.training.objectives.distilling import DistilledObjective
from mtyolo.training.objectives.tasks import TasksObjective

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OUTPUT = {"yolov5": SCALED | {"masks": 1.0, "keypoints": 1.0}, "yolov8n-seg.yaml": {"masks": 1.0}}
OUTPUT |= {"yolo11n-pose.yaml": {"keypoints": 1.0}}
KINDS = sorted(OUTPUT)


def described(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "yolov5":
        model = certain(with_statistics(shape_model(1, **ALL_TASKS)))
        return {"weights": str(save_weights(model, folder / "teacher.safetensors")), "output": OUTPUT[kind]}
    weights = family_file(folder, kind, names={0: CLASSES[0], 1: "other"}, kpt_shape=[POINTS, 3])
    return {"weights": str(weights), "output": OUTPUT[kind]}


def teacher_of(kind: str, folder: Path) -> Teacher:
    config = TeacherConfig.model_validate(described(kind, folder))
    teacher = open_teacher(config, shape_model(**ALL_TASKS), SIDE)
    teacher.record(neck_of(teacher.source))
    return teacher


def tensors(lesson: Lesson) -> list[Tensor]:
    """All that a lesson holds but boxes; scores as probabilities, where a half's error does not grow with the logit."""
    outputs = lesson.outputs
    masks = [] if outputs.segment is None else [*outputs.segment.coefficients, outputs.segment.prototypes]
    scores = [level[..., 4:].sigmoid() for level in outputs.detect]
    return [*scores, *masks, *(outputs.keypoint.points if outputs.keypoint else []), *lesson.features.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_says_in_half_precision_what_it_says_on_a_cpu(kind: str, tmp_path: Path) -> None:
    teacher, images = teacher_of(kind, tmp_path), torch.rand(2, 3, SIDE, SIDE)
    expected = tensors(teacher.lesson(images))
    kinds: set[torch.dtype] = set()
    convolution = next(module for module in teacher.to("cuda").source.modules() if isinstance(module, nn.Conv2d))
    with convolution.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype)):
        found = tensors(teacher.lesson(images.to("cuda")))
    assert kinds == {torch.float16}
    assert next(teacher.parameters()).dtype == torch.float32, "weights stay as they were"
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.isfinite().all()
        # Random narrow networks err by up to a tenth in half precision.
        usual = float((one.cpu() - other).abs().flatten().quantile(0.9))
        assert usual < 0.2 * max(1.0, float(other.square().mean().sqrt()))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_a_teacher_in_half_precision(
    kind: str, precision: str, shapes: Path, tmp_path: Path
) -> None:
    features = [{"method": "relative"}, {"method": "cwd"}]
    distill = {"teachers": [described(kind, tmp_path) | {"features": features}]}
    student = shape_model(**ALL_TASKS)
    before = student.state_dict()["graph.layers.0.conv.weight"].clone()
    config = shape_config(3, device="cuda", precision=precision)
    run = distilled(student, shapes, tmp_path / "run", distill, config=config)
    for row in run.results:
        losses = {name: float(value or 0) for name, value in row.items() if name.startswith("loss/distill")}
        assert set(losses) == {
            "loss/distill",
            *(f"loss/distill.{term}" for term in (*OUTPUT[kind], "relative", "cwd")),
        }
        assert all(math.isfinite(loss) and loss > 0 for loss in losses.values()), losses
    assert not torch.equal(student.state_dict()["graph.layers.0.conv.weight"].cpu(), before)


def terms_of(described: dict[str, Any], shapes: Path, device: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss of each term for the first pictures, and the gradient of their sum in the student."""
    student = shape_model(**ALL_TASKS).to(device).train()
    distiller = make_distiller(
        DistillConfig.model_validate({"teachers": [described]}), student, imgsz=SIDE, device=torch.device(device)
    )
    objective = DistilledObjective(TasksObjective(("detect",), LossGains()), distiller, ())
    torch.manual_seed(0)
    losses = objective(student, shape_batch(shapes).to(device))
    losses.tasks["distill"].backward()
    terms = {name: float(value.detach()) for name, value in losses.components.items() if name.startswith("distill.")}
    gradients = {name: one.grad.cpu() for name, one in student.named_parameters() if one.grad is not None}
    return terms, gradients


@pytest.mark.parametrize("term", [*OUTPUT_TERMS, *sorted(FEATURE_LOSSES)])
def test_a_term_is_on_a_gpu_what_it_is_on_a_cpu(
    term: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    learned = {"output": {term: 1.0}} if term in OUTPUT_TERMS else {"features": [{"method": term}]}
    teacher = {"weights": described("yolov5", tmp_path)["weights"], "cache": True, "folder": str(tmp_path / "saved")}
    expected, expected_gradients = terms_of(teacher | learned, shapes, "cpu")
    assert list((tmp_path / "saved").glob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(SavedLessons, "_compute", None)  # both learn from the same saved outputs
        found, gradients = terms_of(teacher | learned, shapes, "cuda")
    chance = term == "mgd"  # masks at random, on a GPU by its own generator
    assert found == pytest.approx(expected, rel=0.5 if chance else 1e-3)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        wanted = expected_gradients[name]
        assert chance or float((gradient - wanted).norm()) < 0.01 * float(wanted.norm()) + 1e-6, name


def test_outputs_that_were_saved_on_a_gpu_are_read_there(shapes: Path, tmp_path: Path) -> None:
    teacher = described("yolov5", tmp_path) | {"cache": True, "folder": str(tmp_path / "saved")}
    distill = {"teachers": [teacher | {"features": [{"method": "relative"}]}]}
    student = shape_model(**ALL_TASKS)
    run = distilled(student, shapes, tmp_path / "run", distill, config=shape_config(3, device="cuda"))
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == 6
    assert all(math.isfinite(float(row["loss/distill"] or math.nan)) for row in run.results)
