"""Annotations of a COCO json to objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.formats.masks import finite, rle_box, segmentation_to_rle
from mtyolo.data.formats.reading import ImageReading, box_overlap, checked_keypoints
from mtyolo.data.records import Instance, Problems

Identity = int | str
NUMBER_AS_TEXT = r"\s*-?\d{1,100}\s*"
"""Python refuses to read thousands of digits."""
SKIPPED = "annotation that can not be used (skipped)"
LARGEST = 1e9
FEWEST_TO_JUDGE = 5
MANY_BEYOND = 0.1
"""So many boxes, and such a part of them outside, tell that it is no slip."""
SAME_OBJECT_OVERLAP = 0.5
"""Annotations of one id in two files are the same object if their boxes agree at least so much (IoU)."""


@dataclass
class CocoFile:
    """One json, and which classes and tasks it labels."""

    path: Path
    content: dict[str, Any]
    classes: dict[Identity, int] = field(default_factory=dict)  # category id -> class
    points: dict[int, int] = field(default_factory=dict)  # class -> number of keypoints
    images: dict[Identity, ImageReading] = field(default_factory=dict)
    has_masks: bool = False

    @property
    def annotated(self) -> bool:
        return isinstance(self.content.get("annotations"), list)

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The objects listed under a key; none if it is missing or no list."""
        listed = self.content.get(key)
        return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def identity_of(value: Any) -> Identity:
    """Ids are numbers; some tools write them as text, or as 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(NUMBER_AS_TEXT, value):
        return int(value)
    return value if isinstance(value, (int, str)) else str(value)


def read_annotations(
    file: CocoFile, keys: dict[Path, dict[tuple[Identity, int], int]], points: int | None, problems: Problems
) -> None:
    if not file.annotated:
        lack = '"annotations" is no list' if "annotations" in file.content else 'no "annotations"'
        problems.add("file without annotations (for prediction only)", file.path, f"{lack}: nothing to train on")
        return
    _name_what_is_odd(file, problems)
    left_out = {identity_of(category.get("id")) for category in file.entries("categories")} - set(file.classes)
    listed = {identity_of(entry.get("id")) for entry in file.entries("images")}
    seen: set[Identity] = set()
    for annotation in file.entries("annotations"):
        key, image_key = identity_of(annotation.get("id")), identity_of(annotation.get("image_id"))
        category = identity_of(annotation.get("category_id"))

        def skip(kind: str, text: str, key: Identity = key) -> None:
            problems.add(kind, file.path, f"annotation {key}: {text}")

        image = file.images.get(image_key)
        if image is None or category not in file.classes:
            if image_key not in listed:
                skip(SKIPPED, f"image id {image_key} is not in images")
            elif image is not None and category not in left_out:
                skip(SKIPPED, f"category id {category} is not in categories")
            continue
        number = file.classes[category]
        position = keys[image.path].get((key, number))
        known = None if position is None or key in seen else image.instances[position]
        instance = _instance(annotation, number, image, points, known, skip)
        if instance is None:
            continue
        if key in seen:
            skip("annotation id given twice (both kept)", "its id stands here a second time")
        file.has_masks |= instance.segment is not None and not instance.crowd
        _add(image, instance, key, keys[image.path], again=key in seen)
        seen.add(key)


def _name_what_is_odd(file: CocoFile, problems: Problems) -> None:
    """Of the annotations as a whole."""
    entries = file.entries("annotations")
    if strange := len(file.content["annotations"]) - len(entries):
        problems.add(SKIPPED, file.path, f"{strange} of annotations are no objects with keys, {{...}}")
    found = [(entry.get("bbox"), file.images.get(identity_of(entry.get("image_id")))) for entry in entries]
    boxes = [[*box, image.width, image.height] for box, image in found if image is not None and _is_box(box)]
    if len(boxes) < FEWEST_TO_JUDGE:
        return
    x, y, width, height, *sides = np.array(boxes, np.float64).T
    beyond = (x + width > sides[0] + 1) | (y + height > sides[1] + 1)
    between = (x < width) & (width <= sides[0] + 1) & (y < height) & (height <= sides[1] + 1)
    if between.all() and beyond.mean() > MANY_BEYOND:
        problems.add(
            "file whose boxes look like two corners",
            file.path,
            f"as x, y, width, height, which COCO has, {beyond.sum()} of {len(boxes)} would leave their image, as two "
            "corners none; write width and height",
        )


def _is_box(box: Any) -> TypeGuard[list[float]]:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(one) in (int, float) for one in box)
    return numbers and all(abs(one) < LARGEST for one in box)


def _add(
    image: ImageReading, instance: Instance, key: Identity, known: dict[tuple[Identity, int], int], again: bool
) -> None:
    """Append an object, or complete the one that another file has under the same id."""
    position = known.get((key, instance.class_number))
    if position is None or again:
        known.setdefault((key, instance.class_number), len(image.instances))
        image.instances.append(instance)
        return
    other = image.instances[position]
    if box_overlap(other.box_xyxy, instance.box_xyxy) < SAME_OBJECT_OVERLAP:
        image.instances.append(instance)
        return
    image.instances[position] = other._replace(
        segment=instance.segment if other.segment is None else other.segment,
        keypoints=instance.keypoints if other.keypoints is None else other.keypoints,
        area=other.area or instance.area,
    )


def _instance(
    annotation: dict[str, Any],
    number: int,
    image: ImageReading,
    points: int | None,
    known: Instance | None,
    skip: Callable[[str, str], None],
) -> Instance | None:
    """One annotation as an object, or None (a problem then). `known`: what another file has under its id."""
    crowd = _is_crowd(annotation.get("iscrowd"))
    if crowd is None:
        skip(SKIPPED, f"iscrowd {annotation['iscrowd']!r} is neither 0 nor 1")
        return None
    box, segment = annotation.get("bbox"), None
    corners = None if box is None else _clipped(box, image)
    outline = annotation.get("segmentation")
    if outline and known is not None and known.segment is not None and corners == known.box_xyxy:
        segment = known.segment  # both files hold the same outline; reading it once saves most of the time
    elif outline:
        rle = segmentation_to_rle(outline, image.height, image.width)
        if isinstance(rle, str):
            skip("mask that can not be used (the box stays)", rle)
        else:
            segment = rle
    if corners is None:
        corners = "neither bbox nor a usable segmentation" if segment is None else rle_box(segment)
    if isinstance(corners, str):
        skip(SKIPPED, corners)
        return None
    keypoints = None
    if points is not None and annotation.get("keypoints"):
        keypoints = _keypoints(annotation["keypoints"], points, image, skip)
    return Instance(number, corners, segment, keypoints, crowd, _area(annotation.get("area")))


def _area(value: Any) -> float:
    """What the json says of the object's size; 0 where that is nothing to go by."""
    return float(value) if isinstance(value, (int, float)) and finite([value]) and value > 0 else 0.0


def _is_crowd(value: Any) -> bool | None:
    """Of a region: 0 or 1, which some tools write as text. None for anything else."""
    if value in (0, None, "0"):
        return False
    return True if value in (1, "1") else None


def _clipped(box: Any, image: ImageReading) -> tuple[float, float, float, float] | str:
    """A COCO bbox as corners inside the image, or why it is none."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        return f"bbox {box} is not four numbers"
    except OverflowError:
        return "bbox with a number that is too large"
    if not np.isfinite([x, y, width, height]).all():
        return f"bbox {box} is not finite"
    if width <= 0 or height <= 0:
        return f"bbox {box} has no area"
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(image.width)), min(y + height, float(image.height))
    if right <= left or bottom <= top:
        return f"bbox {box} lies outside the image of {image.width}x{image.height}"
    return left, top, right, bottom


def _keypoints(
    values: Any, points: int, image: ImageReading, skip: Callable[[str, str], None]
) -> NDArray[np.float32] | None:
    if not isinstance(values, list) or len(values) != points * 3:
        found = len(values) if isinstance(values, list) else type(values).__name__
        skip("keypoints that can not be used (the box stays)", f"{found} numbers, expected {points * 3} for {points}")
        return None
    if not finite(values):
        skip("keypoints that can not be used (the box stays)", "not all of them are finite numbers")
        return None
    array = np.array(values, np.float32).reshape(points, 3)
    return checked_keypoints(array, image.width, image.height, lambda text: skip("keypoint set right", text))
