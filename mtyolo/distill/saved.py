"""Outputs of a teacher on disk: a picture that was seen once costs a read, not a forward pass.

A folder holds `teacher.json`, which says what made it, and a file a picture, whose name is the hash of
the pixels as the student gets them: whatever geometry or augmentation made them, a file never belongs to other pixels.
Channels and anchors come last in a file, [h, w, C] and [h, w, A, values], as convolutions under channels_last write
them: so they are compared with the student's without a pass over memory that turns one layout into the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from mtyolo.config.distill import CACHE, KIND
from mtyolo.distill.stacked import Arrays, read_layout, read_stacked
from mtyolo.distill.teachers import Answer, Lesson, NoLesson, Teacher
from mtyolo.errors import StoreError
from mtyolo.files import replacing, write_whole
from mtyolo.graph.families import FamilyModel
from mtyolo.model import Model, pixels
from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs
from mtyolo.tasks.keypoint.branch import POINT_VALUES

CARD = "teacher.json"
TENSOR_OF = {"detect": "detect.0", "segment": "prototypes", "keypoint": "keypoint.0"}
"""What a file holds for each task, if anything."""
FORMAT = "mtyolo-teacher/2"
KEY_BYTES = 16

Pixels = NDArray[np.uint8]  # [B, H, W, 3]


class SavedLessons:
    """A folder of lessons. card: what made them, compared with what the folder says.

    teacher: computes what is not there, and it is written; without one, a missing picture is an error.
    Raises StoreError where the folder holds other outputs.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any], teacher: Teacher | None) -> None:
        self.folder = folder
        self.teacher = teacher
        self.by = "" if teacher is not None else _by_its_teacher(folder)
        if teacher is not None:
            begin_folder(folder, card)
        else:
            _check(folder, card)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")

    def ask(self, images: Tensor) -> Answer:
        """images: [B, 3, H, W] uint8. Outputs and features are in half precision, as on the disk.

        Files are read from now on by a thread, where a core has time for it.
        """
        find = partial(self._find, _pixels(images))
        found = find if _cores_are_busy(images.device) else self._reader.submit(find).result
        return lambda: _lesson(self._complete(images, *found()), images.device)

    def _find(self, pixels: Pixels) -> tuple[list[Path], Arrays]:
        """Where the outputs are, and these, or nothing where some are missing.

        Without torch: it would start threads of its own for this one, which get into the way of the training's.
        """
        paths = [self.folder / f"{key}.safetensors" for key in _keys(pixels)]
        return paths, read_stacked(paths, self.by) if all(path.exists() for path in paths) else {}

    def _complete(self, images: Tensor, paths: list[Path], found: Arrays) -> Arrays:
        if found:
            return found
        # By the caller's thread: what it computes with is the student's, too.
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        if missing and self.teacher is None:
            raise NoLesson(self.folder, paths[missing[0]].stem, missing[0])
        if missing:
            self._compute(images[missing], [paths[number] for number in missing])
        return read_stacked(paths, self.by)

    def _compute(self, images: Tensor, paths: list[Path]) -> None:
        assert self.teacher is not None, "without one nothing may be missing"
        write_lesson(self.teacher.lesson(pixels(images)), paths)


def begin_folder(folder: Path, card: Mapping[str, Any]) -> None:
    """A card, where there is none. Raises StoreError where the folder holds other outputs."""
    if not (folder / CARD).exists():
        write_whole(folder / CARD, (json.dumps(dict(card), indent=1) + "\n").encode())
    _check(folder, card)


def write_lesson(lesson: Lesson, paths: Sequence[Path]) -> None:
    """A file for each picture of a batch."""
    tensors = named_tensors(lesson)
    for number, path in enumerate(paths):
        one = {name: tensor[number].half().cpu().movedim(0, 2).contiguous() for name, tensor in tensors.items()}
        with replacing(path, lasting=False) as temporary:
            save_file(one, temporary)


def _cores_are_busy(device: torch.device) -> bool:
    """Does the student's forward pass take them all? Then reading beside it costs more than it saves: measured on two
    threads on two cores, 2 % of a step."""
    return device.type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1)


def keys_of(images: Tensor) -> list[str]:
    """Names of pictures [B, 3, H, W] uint8: BLAKE2b of height, width and the pixels, row by row, RGB."""
    return _keys(_pixels(images))


def _pixels(images: Tensor) -> Pixels:
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # type: ignore[no-any-return]


def _keys(pixels: Pixels) -> list[str]:
    start = hashlib.blake2b(f"{pixels.shape[1]}x{pixels.shape[2]}:".encode(), digest_size=KEY_BYTES)
    hashes = [start.copy() for _ in pixels]
    for one, picture in zip(hashes, pixels, strict=True):
        one.update(picture)
    return [one.hexdigest() for one in hashes]


def card_of(teacher: Teacher, weights: Path, imgsz: int) -> dict[str, Any]:
    """What makes a teacher's outputs what they are, in the student's layout."""
    card = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "size": teacher.size or imgsz,
        "columns": list(teacher.columns),
        "layers": list(teacher.recorded),
    }
    if isinstance(teacher.source, FamilyModel):
        card["decoded"] = "in single precision"  # earlier versions did not
    return card | student_card(teacher, imgsz)


def student_card(student: Model | Teacher, imgsz: int) -> dict[str, Any]:
    """The part that the student and the run ask for. student: a model, or a teacher in its layout."""
    return {
        "format": FORMAT,
        "names": [student.names[number] for number in sorted(student.names)],
        "strides": list(student.strides),
        "anchors": [[[round(v, 4) for v in pair] for pair in level] for level in student.anchors.tolist()],
        "student_size": imgsz,
        "preprocessing": "RGB, letterboxed, grey 114",
    }


def folder_of(place: str | None, card: Mapping[str, Any]) -> Path:
    """Where outputs with this card are kept. place: as a plan names it."""
    kind = hashlib.sha256(json.dumps(dict(card), sort_keys=True).encode()).hexdigest()[:KEY_BYTES]
    return Path((place or CACHE).replace(KIND, kind))


def is_saved(folder: Path) -> bool:
    return (folder / CARD).is_file()


class Held(NamedTuple):
    """What a folder's files hold."""

    channels: dict[int, int]
    """Of feature maps, by the teacher's layer, fine to coarse: not every neck has its layers in this order."""
    tasks: tuple[str, ...]
    points: int | None


def held_by(folder: Path) -> Held:
    """As one of the files says. Raises StoreError where there is none, or it is damaged."""
    some = next(folder.glob("*.safetensors"), None)
    if some is None:
        raise StoreError(f"{folder}: holds no outputs of its teacher yet; they are made{_by_its_teacher(folder)}")
    shapes = read_layout(some, _by_its_teacher(folder))
    features = {int(name.split(".")[1]): shape for name, shape in shapes.items() if name.startswith("feature.")}
    channels = {number: features[number][-1] for number in sorted(features, key=lambda number: -features[number][0])}
    tasks = tuple(task for task, name in TENSOR_OF.items() if name in shapes)
    points = shapes[TENSOR_OF["keypoint"]][-1] // POINT_VALUES if "keypoint" in tasks else None
    return Held(channels, tasks, points)


def _by_its_teacher(folder: Path) -> str:
    """How outputs come into a folder that teaches alone, as the end of a sentence."""
    return (
        f" by a run whose plan names the teacher itself, with cache: true and folder: {folder}; or by the program that "
        "wrote it"
    )


def _check(folder: Path, card: Mapping[str, Any]) -> None:
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder}: no saved outputs of a teacher: {CARD}: {error}") from None
    if not isinstance(found, dict):
        raise StoreError(
            f"{folder / CARD}: does not say what made these outputs; give another folder, or remove this one"
        )
    differs = next((key for key in card if found.get(key) != card[key]), None)
    if differs:
        raise StoreError(
            f"{folder}: holds outputs with {differs} {_short(found.get(differs))}, this run needs "
            f"{_short(card[differs])}; give another folder, or remove this one"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "…"


def named_tensors(lesson: Lesson) -> dict[str, Tensor]:
    """What a file holds of a picture, here of a batch."""
    outputs, segment = lesson.outputs, lesson.outputs.segment
    named = {f"detect.{number}": level for number, level in enumerate(outputs.detect)}
    if segment is not None:
        named |= {f"coefficients.{number}": level for number, level in enumerate(segment.coefficients)}
        named["prototypes"] = segment.prototypes
    if outputs.keypoint is not None:
        named |= {f"keypoint.{number}": level for number, level in enumerate(outputs.keypoint.points)}
        named |= {} if outputs.keypoint.heatmaps is None else {"heatmaps": outputs.keypoint.heatmaps}
    return named | {f"feature.{number}": features for number, features in lesson.features.items()}


def _lesson(arrays: Arrays, device: torch.device) -> Lesson:
    named = {name: torch.from_numpy(array).to(device).movedim(3, 1) for name, array in arrays.items()}

    def levels(kind: str) -> list[Tensor]:
        found = {name: tensor for name, tensor in named.items() if name.startswith(f"{kind}.")}
        return [found[f"{kind}.{number}"] for number in range(len(found))]

    segment = MaskOutputs(levels("coefficients"), named["prototypes"]) if "prototypes" in named else None
    points = levels("keypoint")
    keypoint = KeypointOutputs(points, named.get("heatmaps")) if points else None
    outputs = Outputs({}, {}, levels("detect"), segment, keypoint)
    return Lesson(outputs, {int(name.split(".")[1]): of for name, of in named.items() if name.startswith("feature.")})
