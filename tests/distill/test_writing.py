"""Outputs of any program as a folder that teaches."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from shape_runs import ALL_TASKS, SIDE, certain, shape_batch, shape_model
from tiny_students import with_statistics
from torch import Tensor

from mtyolo.api import build
from mtyolo.config.distill import TeacherConfig
from mtyolo.config.model import shipped_configs
from mtyolo.config.training import TrainConfig
from mtyolo.distill.feature_terms import make_feature_terms
from mtyolo.distill.lessons import open_lessons
from mtyolo.distill.pictures import drawn
from mtyolo.distill.writing import save_outputs
from mtyolo.errors import ConfigError, StoreError
from mtyolo.model import pixels
from mtyolo.structures import Outputs
from mtyolo.training.train import train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "write_teacher_outputs.py"
CPU = torch.device("cpu")


@pytest.fixture
def images(shapes: Path) -> Tensor:
    found = shape_batch(shapes).images
    assert found is not None
    return found


def said(images: Tensor, seed: int = 1) -> Outputs:
    """What a program of the student's layout says of pictures."""
    with torch.no_grad():
        return certain(with_statistics(shape_model(seed, **ALL_TASKS)))(pixels(images))  # type: ignore[no-any-return]


def test_what_was_saved_is_what_teaches(images: Tensor, tmp_path: Path) -> None:
    student, outputs = shape_model(**ALL_TASKS), said(images)
    features = {17: torch.rand(len(images), 8, 8, 8), 20: torch.rand(len(images), 16, 4, 4)}
    save_outputs(tmp_path / "outputs", student, images, outputs, features)
    save_outputs(tmp_path / "outputs", student, images.flip(3), said(images.flip(3)), features)
    terms = {"weights": str(tmp_path / "outputs"), "output": {"kl": 1.0, "masks": 1.0, "keypoints": 1.0}}
    opened = open_lessons(TeacherConfig.model_validate(terms), student, SIDE, CPU)
    found = opened.lessons.ask(drawn(images))()
    assert opened.tasks == ("detect", "segment", "keypoint")
    assert opened.channels == {17: 8, 20: 16}
    assert found.outputs.segment
    assert outputs.segment
    assert found.outputs.keypoint
    assert outputs.keypoint
    pairs = [
        *zip(found.outputs.detect, outputs.detect, strict=True),
        *zip(found.outputs.segment.coefficients, outputs.segment.coefficients, strict=True),
        *zip(found.outputs.keypoint.points, outputs.keypoint.points, strict=True),
        (found.outputs.segment.prototypes, outputs.segment.prototypes),
        (found.outputs.keypoint.heatmaps, outputs.keypoint.heatmaps),
        *((found.features[number], features[number]) for number in features),
    ]
    assert all(torch.equal(one.half(), other.half()) for one, other in pairs)


def test_what_a_folder_holds_of_a_neck_is_paired_fine_to_coarse(images: Tensor, tmp_path: Path) -> None:
    """YOLOv3's head takes 27, 22, 15."""
    student = shape_model()
    features = {number: torch.rand(len(images), 8, side, side) for number, side in ((15, 2), (22, 4), (27, 8))}
    save_outputs(tmp_path, student, images, said(images)._replace(segment=None, keypoint=None), features)
    teacher = {"weights": str(tmp_path), "features": [{"method": "fitnets"}]}
    opened = open_lessons(TeacherConfig.model_validate(teacher), student, SIDE, CPU)
    (term,) = make_feature_terms(TeacherConfig.model_validate(teacher), student, opened)
    assert [(pair.student, pair.teacher) for pair in term.pairs] == [(17, 27), (20, 22), (23, 15)]


def test_files_may_be_written_without_mtyolo_as_the_documentation_says(images: Tensor, tmp_path: Path) -> None:
    student, outputs = shape_model(), said(images)
    card = {
        "format": "mtyolo-teacher/2",
        "names": list(student.names.values()),
        "strides": [8, 16, 32],
        "anchors": [[[round(v, 4) for v in pair] for pair in level] for level in student.anchors.tolist()],
        "student_size": SIDE,
        "preprocessing": "RGB, letterboxed, grey 114",
        "made by": "a test",
    }
    (tmp_path / "teacher.json").write_text(json.dumps(card))
    for number, picture in enumerate(images):
        key = hashlib.blake2b(f"{SIDE}x{SIDE}:".encode() + picture.permute(1, 2, 0).numpy().tobytes(), digest_size=16)
        maps = {
            f"detect.{level}": values[number].permute(1, 2, 0, 3).half().contiguous()
            for level, values in enumerate(outputs.detect)
        }
        save_file(maps, tmp_path / f"{key.hexdigest()}.safetensors")
    config = TeacherConfig.model_validate({"weights": str(tmp_path), "output": {"kl": 1.0}})
    found = open_lessons(config, student, SIDE, CPU).lessons.ask(drawn(images))().outputs.detect
    assert all(torch.equal(one, other.half()) for one, other in zip(found, outputs.detect, strict=True))


def test_a_student_learns_from_what_the_example_writes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    model = tmp_path / "model.yaml"
    model.write_text(yaml.safe_dump({"detector": {"graph": graph | {"width_multiple": 0.05, "depth_multiple": 0.1}}}))
    folder = tmp_path / "outputs"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(shapes), str(folder), str(model)])
    runpy.run_path(str(EXAMPLE))
    assert capsys.readouterr().out == f"6 pictures: {folder}\n"
    assert json.loads((folder / "teacher.json").read_text())["student_size"] == 320
    distill = {"teachers": [{"weights": str(folder), "output": {"kl": 1.0}}], "hard": 0}
    plan = {"stages": [{"name": "d", "augment": False, "distill": distill, "optimizer": "adamw"}]}
    config = TrainConfig(epochs=3, imgsz=320, batch=3, workers=0, device="cpu")
    student = build(model, data=shapes)
    run = train(student, shapes, plan=plan, config=config, out=tmp_path / "run", progress=False)
    first, *_, last = (float(row["loss/distill.kl"] or 0) for row in run.results)
    assert 0 < last < first


Change = Callable[[Outputs], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o._replace(detect=o.detect[:2]), r"detect\.2 is missing, this student has \[4, 3, 2, 2, 9\]"),
        (
            lambda o: o._replace(detect=[level[..., :-1] for level in o.detect]),
            r"detect\.. is \[4, 3, ., ., 8\], this student has",
        ),
        (lambda o: o._replace(detect=[level * 1e9 for level in o.detect]), r"detect\.. has values that are not finite"),
        (
            lambda o: o._replace(segment=o.segment._replace(prototypes=o.segment.prototypes[:1])),
            r"prototypes is \[1, 4, 16, 16\]; give \[B, C, h, w\] for 4 pictures",
        ),
    ],
)
def test_outputs_that_are_not_the_students_are_refused_before_anything_is_written(
    change: Change, message: str, images: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        save_outputs(tmp_path / "outputs", shape_model(**ALL_TASKS), images, change(said(images)))
    assert not (tmp_path / "outputs").exists()


def test_pictures_are_squares_of_bytes(images: Tensor, tmp_path: Path) -> None:
    for wrong in (images.float(), images[:, :, :32]):
        with pytest.raises(ConfigError, match=r"pictures are .*, not uint8 of \[B, 3, side, side\]"):
            save_outputs(tmp_path, shape_model(**ALL_TASKS), wrong, said(images))


def test_outputs_for_another_student_do_not_join(images: Tensor, tmp_path: Path) -> None:
    save_outputs(tmp_path / "outputs", shape_model(**ALL_TASKS), images, said(images))
    other = shape_model(**ALL_TASKS)
    other.names = {number: f"other {number}" for number in other.names}
    with pytest.raises(StoreError, match="holds outputs with names"):
        save_outputs(tmp_path / "outputs", other, images, said(images))
