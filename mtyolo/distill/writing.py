"""Outputs that any program has for pictures, written as a folder that teaches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mtyolo.distill.cards import begin_folder, student_card
from mtyolo.distill.pictures import keys_of
from mtyolo.distill.saved import named_tensors, write_lesson
from mtyolo.distill.teachers import Lesson
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.structures import Outputs
from mtyolo.tasks.keypoint.branch import POINT_VALUES

BOX_AND_OBJECTNESS = 5
"""Values of a row before the classes."""


def save_outputs(
    folder: Path | str,
    student: Model,
    images: Tensor,
    outputs: Outputs,
    features: Mapping[int, Tensor] | None = None,
) -> None:
    """For plans that name this folder as `weights`. The student is not run: it has strides, anchors and classes.

    images: [B, 3, H, W] uint8, RGB, as training gives them to the student. outputs: for these, raw, in the student's
    layout. features: number of a layer of the teacher -> [B, C, h, w].
    Raises ConfigError for outputs of other shapes, or too large for half precision; StoreError where the folder holds
    outputs for another student or size.
    """
    place, lesson = Path(folder), Lesson(outputs, dict(features or {}))
    if images.dtype != torch.uint8 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ConfigError(
            f"{place}: pictures are {images.dtype} of {list(images.shape)}, not uint8 of [B, 3, side, side]"
        )
    _check(place, named_tensors(lesson), _shapes(student, images, outputs), len(images))
    begin_folder(place, student_card(student, images.shape[-1]))
    write_lesson(lesson, [place / f"{key}.safetensors" for key in keys_of(images)])


def _check(place: Path, found: Mapping[str, Tensor], needed: Mapping[str, list[int]], images: int) -> None:
    for name in needed.keys() | found.keys():
        tensor = found.get(name)
        shape = None if tensor is None else list(tensor.shape)
        if name in needed and shape != needed[name]:
            raise ConfigError(f"{place}: {name} is {shape or 'missing'}, this student has {needed[name]}")
        if tensor is not None and (tensor.ndim < 4 or len(tensor) != images):
            raise ConfigError(f"{place}: {name} is {shape}; give [B, C, h, w] for {images} pictures")
        if tensor is not None and not tensor.half().isfinite().all():
            raise ConfigError(f"{place}: {name} has values that are not finite in half precision")


def _shapes(student: Model, images: Tensor, outputs: Outputs) -> dict[str, list[int]]:
    """By name, of all that lies in the student's rows."""
    values = {"detect": BOX_AND_OBJECTNESS + len(student.names)}
    if outputs.segment is not None:
        values["coefficients"] = outputs.segment.prototypes.shape[1]
    if outputs.keypoint is not None:
        values["keypoint"] = POINT_VALUES * (student.keypoints or 0)
    start, side = [len(images), student.anchors.shape[1]], images.shape[-1]
    return {
        f"{kind}.{number}": [*start, side // stride, side // stride, count]
        for kind, count in values.items()
        for number, stride in enumerate(student.strides)
    }


__all__ = ["save_outputs"]
