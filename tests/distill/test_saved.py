"""Outputs on disk: one pass, the same numbers, and never those of another picture or teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny_families import family_file
from tiny_students import SIZE, tiny_model, with_statistics
from torch import Tensor

from mtyolo.checkpoint import save_weights
from mtyolo.config.distill import DistillConfig, TeacherConfig
from mtyolo.distill.lessons import Opened, open_lessons
from mtyolo.distill.objective import make_distiller
from mtyolo.distill.pictures import Pictures, drawn, keys_of
from mtyolo.distill.saved import SavedLessons
from mtyolo.distill.teachers import NoLesson
from mtyolo.errors import ConfigError, StoreError
from mtyolo.structures import Targets

BRANCHES = {"segment": {"prototypes": 4, "channels": 8}, "keypoint": {}}
CPU = torch.device("cpu")


def images(seed: int = 0, count: int = 2) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(save_weights(with_statistics(tiny_model(seed=1, **BRANCHES)), tmp_path / "teacher.safetensors"))


def opened(weights: object, folder: Path | None, imgsz: int = SIZE, seed: int = 0, pool: int = 1) -> Opened:
    content = {"weights": str(weights), "output": {"scaled": 1}, "features": [{"method": "fitnets"}], "pool": pool}
    if folder is not None:
        content |= {"cache": True, "folder": str(folder)}
    return open_lessons(TeacherConfig.model_validate(content), tiny_model(seed=seed, **BRANCHES), imgsz, CPU)


def test_saved_outputs_are_the_teachers_to_half_precision(weights: str, tmp_path: Path) -> None:
    live, cached = opened(weights, None), opened(weights, tmp_path / "lessons")
    expected = live.lessons.ask(drawn(images()))()
    for attempt in ("computed", "read"):
        found = cached.lessons.ask(drawn(images()))()
        for one, other in zip(found.outputs.detect, expected.outputs.detect, strict=True):
            assert torch.allclose(one.float(), other, rtol=1e-3, atol=1e-3), attempt
        assert found.outputs.segment is not None
        assert expected.outputs.segment is not None
        assert torch.allclose(
            found.outputs.segment.prototypes.float(), expected.outputs.segment.prototypes, rtol=1e-3, atol=1e-3
        )
        assert found.outputs.keypoint is not None
        assert expected.outputs.keypoint is not None
        maps = found.outputs.keypoint.heatmaps, expected.outputs.keypoint.heatmaps
        assert maps[1] is not None
        assert torch.allclose(maps[0].float(), maps[1], rtol=1e-3, atol=1e-3)
        assert maps[1].any()
        assert found.features.keys() == expected.features.keys()
        for number, features in expected.features.items():
            assert found.features[number].dtype == torch.float16
            assert torch.allclose(found.features[number].float(), features, rtol=1e-3, atol=1e-3), attempt
            assert found.features[number].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("busy", [False, True])
def test_answers_belong_to_their_question(
    busy: bool, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read beside the student's forward pass, from the moment of asking, or when they are needed."""
    monkeypatch.setattr("mtyolo.distill.saved._cores_are_busy", lambda device: busy)
    lessons = opened(weights, tmp_path / "lessons").lessons
    batches = images(), images(seed=1)
    expected = [lessons.ask(drawn(batch))().outputs.detect[0] for batch in batches]
    first, second = (lessons.ask(drawn(batch)) for batch in batches)
    assert torch.equal(second().outputs.detect[0], expected[1])
    assert torch.equal(first().outputs.detect[0], expected[0])
    assert not torch.equal(*expected)


def test_a_picture_that_was_seen_costs_no_pass(weights: str, tmp_path: Path) -> None:
    cached, passes = opened(weights, tmp_path / "lessons"), []
    assert cached.teacher is not None
    hook = cached.teacher.source.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    cached.lessons.ask(drawn(images()))()
    cached.lessons.ask(drawn(images()))()
    cached.lessons.ask(drawn(torch.cat((images(), images(seed=1, count=1)))))()
    hook.remove()
    assert passes == [2, 1], "two pictures, then the one that is new"


def test_pictures_with_names_of_their_own_are_found_by_pixels_or_computed(weights: str, tmp_path: Path) -> None:
    cached = opened(weights, tmp_path / "lessons")
    expected = cached.lessons.ask(drawn(images(count=3)))().outputs.detect[0]
    for path in (tmp_path / "lessons" / f"{keys_of(images(count=3))[number]}.safetensors" for number in (0, 2)):
        path.unlink()
    draw = Mock(wraps=lambda numbers: images(count=3)[list(numbers)])
    for _ in range(2):
        named = Pictures(draw, ["a", "b", None], (SIZE, SIZE), CPU)
        assert named.keys == named.keys == ["a", "b", keys_of(images(count=3))[2]]
        assert torch.equal(cached.lessons.ask(named)().outputs.detect[0], expected)
    assert [call.args[0] for call in draw.call_args_list] == [[2], [0, 1, 2], [2]], "each look is the last one needed"
    assert {path.stem for path in (tmp_path / "lessons").glob("*.safetensors")} == {"a", *keys_of(images(count=3))[1:]}


def test_one_pixel_makes_another_picture() -> None:
    first, second = images(count=1), images(count=1)
    second[0, 1, 5, 7] ^= 1
    assert keys_of(first) != keys_of(second)
    assert keys_of(first) == keys_of(first.contiguous(memory_format=torch.channels_last))


def test_a_folder_alone_can_teach_and_says_when_a_picture_is_missing(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder).lessons.ask(drawn(images()))()
    alone = opened(folder, None)
    assert alone.teacher is None
    assert alone.lessons.ask(drawn(images()))().outputs.detect[0].shape == (2, 3, SIZE // 8, SIZE // 8, 7)
    with pytest.raises(NoLesson, match="has no outputs for one of the pictures") as refused:
        alone.lessons.ask(drawn(torch.cat((images(), images(seed=1)))))()
    assert refused.value.number == 2, "the first that is missing"


@pytest.mark.parametrize("option", [{"size": 96}, {"classes": "by-number"}, {"graph": "yolov8n.yaml"}])
def test_what_is_for_a_teacher_that_is_asked_is_refused_beside_saved_outputs(
    option: dict[str, object], weights: str, tmp_path: Path
) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder)
    content = {"weights": str(folder), "output": {"scaled": 1}, **option}
    with pytest.raises(ConfigError, match=f"is a folder of saved outputs, and {next(iter(option))} is for a teacher"):
        open_lessons(TeacherConfig.model_validate(content), tiny_model(**BRANCHES), SIZE, CPU)


def test_outputs_for_another_size_or_teacher_are_refused(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder)
    with pytest.raises(StoreError, match="holds outputs with size 128, this run needs 96"):
        opened(weights, folder, imgsz=96)
    with pytest.raises(StoreError, match="holds outputs with student_size 128, this run needs 96"):
        opened(folder, None, imgsz=96)
    other = save_weights(tiny_model(seed=2, **BRANCHES), tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="holds outputs with weights"):
        opened(other, folder)


def test_outputs_with_maps_pooled_otherwise_are_refused(weights: str, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    opened(weights, whole)
    opened(weights, halved, pool=2).lessons.ask(drawn(images()))()
    for teacher, folder in ((weights, halved), (halved, None)):
        with pytest.raises(StoreError, match="holds outputs with pool 2, this run needs 1; give another folder"):
            opened(teacher, folder)
    with pytest.raises(StoreError, match="holds outputs with pool 1, this run needs 2"):
        opened(weights, whole, pool=2)
    features = opened(halved, None, pool=2).lessons.ask(drawn(images()))().features
    assert [maps.shape[-1] for maps in features.values()] == [SIZE // 16, SIZE // 32, SIZE // 64]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("key", "other", "needed"),
    [
        ("format", "mtyolo-teacher/1", "mtyolo-teacher/2"),
        ("preprocessing", "BGR, stretched", "RGB, letterboxed, grey 114"),
    ],
)
def test_outputs_of_another_format_or_of_pictures_made_otherwise_are_refused(
    key: str, other: str, needed: str, weights: str, tmp_path: Path, alone: bool
) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder)
    card = json.loads((folder / "teacher.json").read_text())
    assert card[key] == needed
    (folder / "teacher.json").write_text(json.dumps(card | {key: other}))
    with pytest.raises(StoreError, match=f"holds outputs with {key} {other}, this run needs {needed}"):
        opened(folder if alone else weights, None if alone else folder)


def test_a_damaged_file_is_named(weights: str, tmp_path: Path) -> None:
    cached = opened(weights, tmp_path / "lessons")
    cached.lessons.ask(drawn(images()))()
    (path,) = (tmp_path / "lessons").glob(f"{keys_of(images())[0]}.safetensors")
    path.write_bytes(b"no tensors")
    with pytest.raises(StoreError, match=rf"{path.name}: damaged"):
        cached.lessons.ask(drawn(images()))()


def test_outputs_that_a_family_once_decoded_in_half_precision_are_not_taken(tmp_path: Path) -> None:
    weights, folder = family_file(tmp_path, "yolo11n-pose.yaml", kpt_shape=[2, 3]), tmp_path / "lessons"
    options = {"weights": str(weights), "output": {"keypoints": 1}, "cache": True, "folder": str(folder)}
    config, student = TeacherConfig.model_validate(options), tiny_model(**BRANCHES)
    open_lessons(config, student, SIZE, CPU)
    open_lessons(config, student, SIZE, CPU)
    card = json.loads((folder / "teacher.json").read_text())
    del card["decoded"]
    (folder / "teacher.json").write_text(json.dumps(card))
    with pytest.raises(StoreError, match="holds outputs with decoded None, this run needs in single precision"):
        open_lessons(config, student, SIZE, CPU)


@pytest.mark.parametrize(
    ("term", "branches", "message"),
    [
        ("masks", {}, "has no segment branch to teach masks with, only detect; leave the term out"),
        ("keypoints", {}, "has no keypoint branch to teach keypoints with, only detect; leave the term out"),
        ("keypoints", {"keypoint": {"points": 5}}, "knows 5 points, the student 2"),
    ],
)
def test_what_a_folder_does_not_hold_is_refused_before_training(
    term: str, branches: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights = save_weights(with_statistics(tiny_model(seed=1, points=5, **branches)), tmp_path / "t.safetensors")
    folder, student = tmp_path / "lessons", tiny_model(**BRANCHES)
    cached = {"weights": str(weights), "output": {"scaled": 1}, "cache": True, "folder": str(folder)}
    open_lessons(TeacherConfig.model_validate(cached), student, SIZE, CPU).lessons.ask(drawn(images()))()
    alone = DistillConfig.model_validate({"teachers": [{"weights": str(folder), "output": {term: 1}}]})
    with pytest.raises(ConfigError, match=message):
        make_distiller(alone, student, imgsz=SIZE, device=CPU)


def test_a_folder_without_features_has_none_to_teach(weights: str, tmp_path: Path) -> None:
    folder, student = tmp_path / "lessons", tiny_model()
    cached = {"weights": weights, "output": {"scaled": 1}, "cache": True, "folder": str(folder)}
    open_lessons(TeacherConfig.model_validate(cached), student, SIZE, CPU).lessons.ask(drawn(images()))()
    alone = DistillConfig.model_validate({"teachers": [{"weights": str(folder), "features": [{"method": "cwd"}]}]})
    with pytest.raises(
        ConfigError, match=r"lessons: holds no features, only outputs; leave features out, or let a run"
    ):
        make_distiller(alone, student, imgsz=SIZE, device=CPU)


def test_a_folder_without_outputs_is_no_teacher(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder)
    with pytest.raises(StoreError, match=r"holds no outputs .* by a run whose plan names the teacher itself"):
        opened(folder, None)


@pytest.mark.parametrize("content", [[], "words"])
def test_a_card_that_is_no_table_is_refused(content: object, weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder)
    (folder / "teacher.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"teacher\.json: does not say what made these outputs"):
        opened(folder, None)


def test_a_damaged_file_of_a_folder_alone_is_made_again_by_the_teacher(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    opened(weights, folder).lessons.ask(drawn(images()))()
    alone = opened(folder, None)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"no tensors")
    message = (
        r"damaged: .*remove it, it will be made again by a run whose plan names the teacher itself, with cache: true"
    )
    with pytest.raises(StoreError, match=message):
        alone.lessons.ask(drawn(images()))()
    with pytest.raises(StoreError, match=message):
        opened(folder, None)


def test_without_a_card_a_folder_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"teacher\.json"):
        SavedLessons(tmp_path, {}, None)


@pytest.mark.parametrize("term", ["mse", "kl", "soft", "scaled", "masks", "keypoints"])
def test_saved_outputs_teach_under_mixed_precision(weights: str, tmp_path: Path, term: str) -> None:
    """On a CPU, bfloat16 of the student meets float16 of the disk."""
    teacher = {"weights": weights, "output": {term: 1}, "features": [{"method": "fitnets"}]}
    teacher |= {"cache": True, "folder": str(tmp_path / "lessons")}
    student = tiny_model(seed=0, **BRANCHES)
    config = DistillConfig.model_validate({"teachers": [teacher]})
    distiller = make_distiller(config, student, imgsz=SIZE, device=CPU, sigmas=[0.05] * 2)
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    seen_images, losses = images(), []
    for dtype in (torch.float32, torch.bfloat16):
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with mixed, distiller.watching(drawn(seen_images)) as seen:
            outputs = student(seen_images.float() / 255)
            found = distiller(student, outputs, seen, nothing)
        losses.append(torch.stack([value.float() for value in found.values()]))
    assert torch.allclose(*losses, rtol=0.1, atol=0.02), losses
