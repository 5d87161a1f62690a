"""Outputs of a teacher on disk: a picture that was seen once costs a read, not a forward pass.

A folder holds `teacher.json`, which says what made it, and a file a picture, whose name is the hash of the pixels as
the student gets them, or, of a feature store's views, of all that they are made of, so that nobody has to draw them
again: whatever geometry or augmentation made them, a file never belongs to other pixels.
Channels and anchors come last in a file, [h, w, C] and [h, w, A, values], as convolutions under channels_last write
them: so they are compared with the student's without a pass over memory that turns one layout into the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from mtyolo.distill.cards import begin_folder, by_its_teacher, check
from mtyolo.distill.pictures import Pictures, keys_of
from mtyolo.distill.stacked import Arrays, read_layout, read_stacked
from mtyolo.distill.teachers import Answer, Lesson, NoLesson, Teacher
from mtyolo.errors import StoreError
from mtyolo.files import replacing
from mtyolo.model import pixels
from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs
from mtyolo.tasks.keypoint.branch import POINT_VALUES

TENSOR_OF = {"detect": "detect.0", "segment": "prototypes", "keypoint": "keypoint.0"}
"""What a file holds for each task, if anything."""
FEATURE = "feature."
"""Before the numbers of the teacher's layers."""


class SavedLessons:
    """A folder of lessons. card: what made them, compared with what the folder says. maps: are outputs asked for, or
    features alone? Then nothing else is read.

    teacher: computes what is not there, and it is written; without one, a missing picture is an error.
    Raises StoreError where the folder holds other outputs.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any], teacher: Teacher | None, *, maps: bool = True) -> None:
        self.folder = folder
        self.only = "" if maps else FEATURE
        self.teacher = teacher
        self.by = "" if teacher is not None else by_its_teacher(folder)
        if teacher is not None:
            begin_folder(folder, card)
        else:
            check(folder, card)
        self.known_as: dict[str, str] = {}
        """Key of a picture -> of its pixels, where its file is called by these, as other programs call theirs."""
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")

    def ask(self, pictures: Pictures) -> Answer:
        """Outputs and features are in half precision, as on the disk.

        Files are read from now on by a thread, where a core has time for it.
        """
        find = partial(self._find, [self._path(key) for key in pictures.keys])
        found = find if _cores_are_busy(pictures.device) else self._reader.submit(find).result
        return lambda: _lesson(found() or self._complete(pictures), pictures.device)

    def _path(self, key: str) -> Path:
        return self.folder / f"{self.known_as.get(key, key)}.safetensors"

    def _find(self, paths: list[Path]) -> Arrays:
        """Nothing where some are missing.

        Without torch: it would start threads of its own for this one, which get into the way of the training's.
        """
        return self._read(paths) if all(path.exists() for path in paths) else {}

    def _complete(self, pictures: Pictures) -> Arrays:
        missing = [number for number, key in enumerate(pictures.keys) if not self._path(key).exists()]
        if missing:
            self._supply(pictures, missing)
        return self._read([self._path(key) for key in pictures.keys])

    def _supply(self, pictures: Pictures, missing: list[int]) -> None:
        """By the caller's thread: what it computes with is the student's, too."""
        images = pictures.of(missing)
        for number, key in zip(missing, keys_of(images), strict=True):
            if self._path(key).exists():
                self.known_as[pictures.keys[number]] = key
        paths = [self._path(pictures.keys[number]) for number in missing]
        left = [place for place, path in enumerate(paths) if not path.exists()]
        if not left:
            return
        if self.teacher is None:
            raise NoLesson(self.folder, paths[left[0]].stem, missing[left[0]])
        write_lesson(self.teacher.lesson(pixels(images[left])), [paths[place] for place in left])

    def _read(self, paths: list[Path]) -> Arrays:
        return read_stacked(paths, self.by, only=self.only)


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
        raise StoreError(f"{folder}: holds no outputs of its teacher yet; they are made{by_its_teacher(folder)}")
    shapes = read_layout(some, by_its_teacher(folder))
    features = {int(name.split(".")[1]): shape for name, shape in shapes.items() if name.startswith(FEATURE)}
    channels = {number: features[number][-1] for number in sorted(features, key=lambda number: -features[number][0])}
    tasks = tuple(task for task, name in TENSOR_OF.items() if name in shapes)
    points = shapes[TENSOR_OF["keypoint"]][-1] // POINT_VALUES if "keypoint" in tasks else None
    return Held(channels, tasks, points)


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
    return named | {f"{FEATURE}{number}": features for number, features in lesson.features.items()}


def _lesson(arrays: Arrays, device: torch.device) -> Lesson:
    named = {name: torch.from_numpy(array).to(device).movedim(3, 1) for name, array in arrays.items()}

    def levels(kind: str) -> list[Tensor]:
        found = {name: tensor for name, tensor in named.items() if name.startswith(f"{kind}.")}
        return [found[f"{kind}.{number}"] for number in range(len(found))]

    segment = MaskOutputs(levels("coefficients"), named["prototypes"]) if "prototypes" in named else None
    points = levels("keypoint")
    keypoint = KeypointOutputs(points, named.get("heatmaps")) if points else None
    outputs = Outputs({}, {}, levels("detect"), segment, keypoint)
    return Lesson(outputs, {int(name.split(".")[1]): of for name, of in named.items() if name.startswith(FEATURE)})
