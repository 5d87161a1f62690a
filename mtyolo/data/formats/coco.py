"""COCO json to objects: instances and keypoints of one image, merged by annotation id.

Rules: an annotation that can not be used is skipped and named; a box is clipped to the image; the image file is
believed about its size; a mask that can not be read leaves its box in use; crowd regions are kept and marked.
An image is labelled for boxes (masks) where the files that list it, taken together, have every category that the
split's files (with masks) have; for keypoints where one of them has keypoints, even if it shows nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.formats.masks import rle_box, segmentation_to_rle
from mtyolo.data.formats.reading import ImageReading, Reading, box_overlap, checked_keypoints, sizes_of
from mtyolo.data.records import Instance, Problems
from mtyolo.errors import DataError

Identity = int | str
SKIPPED = "annotation that can not be used (skipped)"
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


def read_coco(
    paths: Sequence[Path], folders: Sequence[Path], names: dict[int, str] | None, points: int | None, problems: Problems
) -> Reading:
    """Read json files about the images in `folders`. `names`: the classes wanted, matched by name; None: all, by id.

    Raises DataError: a file that is no COCO json, image ids that can not be told apart, keypoint counts that differ.
    """
    files = [CocoFile(path, read_json(path)) for path in paths]
    names = names or category_names([file.content for file in files], paths)
    by_path: dict[Path, ImageReading] = {}
    for file in files:
        _match_categories(file, names, problems)
        _find_images(file, folders, by_path, problems)
    points = _agreed_points(files, points)
    keys: dict[Path, dict[tuple[Identity, int], int]] = {path: {} for path in by_path}
    for file in files:
        _read_annotations(file, keys, points, problems)
    _mark_labelled(files)
    flip_idx = next((flip for file in files if (flip := _flip_by_name(file.content)) is not None), None)
    category_ids = {number: int(key) for file in files for key, number in file.classes.items() if isinstance(key, int)}
    return Reading(list(by_path.values()), names, points, flip_idx if points else None, category_ids)


def read_json(path: Path) -> dict[str, Any]:
    """A COCO json's content. Raises DataError naming file and position."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file (looked at {path.absolute()})") from None
    except json.JSONDecodeError as error:
        empty = "the file is empty" if path.stat().st_size == 0 else error.msg
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not valid json: {empty}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not json text: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: not a COCO json: expected an object with images, annotations and categories")
    return content


def category_names(contents: Sequence[dict[str, Any]], paths: Sequence[Path]) -> dict[int, str]:
    """Class -> name: the categories of all files, numbered in the order of their ids."""
    found: dict[Identity, str] = {}
    for content, path in zip(contents, paths, strict=True):
        for category in content.get("categories") or []:
            name = str(category.get("name"))
            key = _identity(category.get("id"))
            if found.setdefault(key, name) != name:
                raise DataError(f"{path}: category {key} is {name!r} here and {found[key]!r} in another file")
    if not found:
        raise DataError(f"{paths[0]}: lists no categories; add them, or names: to the data file")
    return dict(enumerate(found[key] for key in sorted(found, key=lambda key: (isinstance(key, str), key))))


def _identity(value: Any) -> Identity:
    """Ids are numbers; some tools write them as text."""
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    return value if isinstance(value, (int, str)) else str(value)


def _match_categories(file: CocoFile, names: dict[int, str], problems: Problems) -> None:
    numbers = {name: number for number, name in names.items()}
    unwanted = []
    for category in file.content.get("categories") or []:
        number = numbers.get(str(category.get("name")))
        if number is None:
            unwanted.append(str(category.get("name")))
            continue
        file.classes[_identity(category.get("id"))] = number
        if category.get("keypoints"):
            file.points[number] = len(category["keypoints"])
    if unwanted and not file.classes:
        raise DataError(
            f"{file.path}: none of its categories ({', '.join(unwanted[:5])}, …) is in names; "
            "classes are matched by name"
        )
    if unwanted:
        problems.note(f"{file.path}: {len(unwanted)} categories are not in names and are left out: {unwanted[:5]}")


def _find_images(
    file: CocoFile, folders: Sequence[Path], by_path: dict[Path, ImageReading], problems: Problems
) -> None:
    """Give each image of the json its file, and its size from that file."""
    listed: dict[Identity, Path] = {}
    entries: dict[Identity, dict[str, Any]] = {}
    for entry in file.content["images"]:
        key, name = _identity(entry.get("id")), str(entry.get("file_name"))
        if key in entries and entries[key].get("file_name") != name:
            raise DataError(
                f"{file.path}: image id {key} stands for {entries[key].get('file_name')} and {name}, so annotations "
                "can not be told apart; give each image its own id"
            )
        path = _locate(name, folders)
        if path is None:
            problems.add("image file missing (skipped)", file.path, f"image {key}: no {name} in {_places(folders)}")
            continue
        entries[key], listed[key] = entry, path
    if any(isinstance(entry.get("id"), str) for entry in entries.values()):
        problems.add("ids written as text (read as numbers)", file.path, "image ids are strings")
    sizes = sizes_of([path for path in listed.values() if path not in by_path], problems)
    for key, path in listed.items():
        if path in sizes and path not in by_path:
            by_path[path] = ImageReading(path, *sizes[path], identity=key)
            _compare_size(file, entries[key], by_path[path], problems)
        if path in by_path:
            file.images[key] = by_path[path]


def _locate(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / name).is_file()), None)


def _places(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def _compare_size(file: CocoFile, entry: dict[str, Any], image: ImageReading, problems: Problems) -> None:
    said = (entry.get("height"), entry.get("width"))
    if said[0] is not None and said != (image.height, image.width):
        problems.add(
            "image size differs from the json (the file is believed)",
            file.path,
            f"{image.path.name} is {image.width}x{image.height} upright, the json says {said[1]}x{said[0]}",
        )


def _agreed_points(files: Sequence[CocoFile], points: int | None) -> int | None:
    for file in files:
        file.points = file.points or _points_in_use(file)
        for found in set(file.points.values()):
            if points is not None and found != points:
                raise DataError(f"{file.path}: a category has {found} keypoints where {points} are expected")
            points = found
    return points


def _points_in_use(file: CocoFile) -> dict[int, int]:
    """Keypoints per class of a file whose categories do not name them."""
    found: dict[int, int] = {}
    for annotation in file.content.get("annotations") or []:
        number, values = file.classes.get(_identity(annotation.get("category_id"))), annotation.get("keypoints")
        if number is not None and values:
            found.setdefault(number, len(values) // 3)
    return found


def _read_annotations(
    file: CocoFile, keys: dict[Path, dict[tuple[Identity, int], int]], points: int | None, problems: Problems
) -> None:
    if not file.annotated:
        problems.add(
            "file without annotations (for prediction only)", file.path, 'no "annotations": nothing to train on'
        )
        return
    left_out = {_identity(category.get("id")) for category in file.content.get("categories") or []} - set(file.classes)
    listed = {_identity(entry.get("id")) for entry in file.content["images"]}
    seen: set[Identity] = set()
    for annotation in file.content["annotations"]:
        key, image_key = _identity(annotation.get("id")), _identity(annotation.get("image_id"))
        category = _identity(annotation.get("category_id"))

        def skip(kind: str, text: str, key: Identity = key) -> None:
            problems.add(kind, file.path, f"annotation {key}: {text}")

        image = file.images.get(image_key)
        if image is None or category not in file.classes:
            if image_key not in listed:
                skip(SKIPPED, f"image id {image_key} is not in images")
            elif image is not None and category not in left_out:
                skip(SKIPPED, f"category id {category} is not in categories")
            continue
        instance = _instance(annotation, file.classes[category], image, points, skip)
        if instance is None:
            continue
        if key in seen:
            skip("annotation id given twice (both kept)", "its id stands here a second time")
        file.has_masks |= instance.segment is not None and not instance.crowd
        _add(image, instance, key, keys[image.path], again=key in seen)
        seen.add(key)


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
    )


def _instance(
    annotation: dict[str, Any], number: int, image: ImageReading, points: int | None, skip: Callable[[str, str], None]
) -> Instance | None:
    crowd = bool(annotation.get("iscrowd", 0))
    segment = None
    if annotation.get("segmentation"):
        rle = segmentation_to_rle(annotation["segmentation"], image.height, image.width)
        if isinstance(rle, str):
            skip("mask that can not be used (the box stays)", rle)
        else:
            segment = rle
    box = annotation.get("bbox")
    if box is None and segment is not None:
        corners: tuple[float, float, float, float] | str = rle_box(segment)
    else:
        corners = _clipped(box, image)
    if isinstance(corners, str):
        skip(SKIPPED, corners)
        return None
    keypoints = None
    if points is not None and annotation.get("keypoints"):
        keypoints = _keypoints(annotation["keypoints"], points, image, skip)
    return Instance(number, corners, segment, keypoints, crowd)


def _clipped(box: Any, image: ImageReading) -> tuple[float, float, float, float] | str:
    """A COCO bbox as corners inside the image, or why it is none."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        return f"bbox {box} is not four numbers"
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
    array = np.array(values, np.float32).reshape(points, 3)
    return checked_keypoints(array, image.width, image.height, lambda text: skip("keypoint set right", text))


def _mark_labelled(files: Sequence[CocoFile]) -> None:
    for task, labels_it in (("detect", lambda file: True), ("segment", lambda file: file.has_masks)):
        classes = [set(file.classes.values()) if file.annotated and labels_it(file) else set() for file in files]
        wanted = set().union(*classes)
        covered: dict[int, set[int]] = {}
        for file, own in zip(files, classes, strict=True):
            for image in file.images.values():
                covered.setdefault(id(image), set()).update(own)
        for image in (image for file in files for image in file.images.values()):
            if wanted and covered[id(image)] >= wanted:
                image.labelled.add(task)
    for file in files:
        if file.points and file.annotated:
            for image in file.images.values():
                image.labelled.add("keypoint")


def _flip_by_name(content: dict[str, Any]) -> list[int] | None:
    """What each keypoint becomes in a mirror, where names say left and right."""
    for category in content.get("categories") or []:
        names = [str(name) for name in category.get("keypoints") or []]
        mirrored = [_mirror(name) for name in names]
        if names and set(mirrored) == set(names) and len(set(names)) == len(names) and mirrored != names:
            return [names.index(name) for name in mirrored]
    return None


def _mirror(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")
