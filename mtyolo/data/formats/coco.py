"""COCO json to objects: instances and keypoints of one image, merged by annotation id.

Rules: an annotation that can not be used is skipped and named; a box is clipped to the image; the image file is
believed about its size; a mask that can not be read leaves its box in use; crowd regions are kept and marked.
An image is labelled for boxes (masks) where the files that list it, taken together, have every category that the
split's files (with masks) have; for keypoints where one of them has keypoints, even if it shows nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtyolo.data.formats.coco_annotations import CocoFile, Identity, identity_of, read_annotations
from mtyolo.data.formats.coco_images import match_images
from mtyolo.data.formats.reading import ImageReading, Reading
from mtyolo.data.records import Problems
from mtyolo.errors import DataError

NUMBERS_A_POINT = 3
"""x, y, visibility."""


def read_coco(
    paths: Sequence[Path], folders: Sequence[Path], names: dict[int, str] | None, points: int | None, problems: Problems
) -> Reading:
    """Read json files about the images in `folders`. `names`: the classes wanted, matched by name; None: all, by id.

    Raises DataError: a file that is no COCO json, image ids that can not be told apart, keypoint counts that differ.
    """
    files = [CocoFile(path, read_json(path)) for path in paths]
    names = names or category_names(files)
    by_path: dict[Path, ImageReading] = {}
    for file in files:
        _match_categories(file, names, problems)
        match_images(file, folders, by_path, problems)
    points = _agreed_points(files, points)
    keys: dict[Path, dict[tuple[Identity, int], int]] = {path: {} for path in by_path}
    for file in files:
        read_annotations(file, keys, points, problems)
    _mark_labelled(files)
    flip_idx = next((flip for file in files if (flip := _flip_by_name(file)) is not None), None)
    category_ids = {number: int(key) for file in files for key, number in file.classes.items() if isinstance(key, int)}
    skeleton = next((found for file in files if (found := _skeleton(file, points))), None)
    return Reading(list(by_path.values()), names, points, flip_idx if points else None, category_ids, skeleton)


def read_json(path: Path) -> dict[str, Any]:
    """A COCO json's content. Raises DataError naming file and position."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file (looked at {path.absolute()})") from None
    except OSError as error:
        raise DataError(f"{path}: the annotation file can not be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        empty = "the file is empty" if path.stat().st_size == 0 else error.msg
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not valid json: {empty}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, brackets without end
        raise DataError(f"{path}: not json text: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: not a COCO json: expected an object with images, annotations and categories")
    return content


def read_outline(path: Path) -> CocoFile:
    """A json's categories, and an annotation for each that has keypoints: what tells classes and points."""
    content = read_json(path)
    found: dict[Identity, dict[str, Any]] = {}
    for annotation in CocoFile(path, content).entries("annotations"):
        if annotation.get("keypoints"):
            found.setdefault(identity_of(annotation.get("category_id")), annotation)
    return CocoFile(path, {"categories": content.get("categories"), "annotations": list(found.values())})


def category_points(files: Sequence[CocoFile], names: dict[int, str]) -> int | None:
    """Keypoints of an object of these classes; None without. Raises DataError where files do not agree."""
    for file in files:
        _match_categories(file, names, Problems())
    return _agreed_points(files, None)


def category_names(files: Sequence[CocoFile]) -> dict[int, str]:
    """Class -> name: the categories of all files, numbered in the order of their ids."""
    found: dict[Identity, str] = {}
    ids: dict[str, Identity] = {}
    for file in files:
        for category in file.entries("categories"):
            key, name = identity_of(category.get("id")), _category_name(file, category)
            if found.setdefault(key, name) != name:
                raise DataError(f"{file.path}: category {key} is {name!r} here and {found[key]!r} in another place")
            if ids.setdefault(name, key) != key:
                raise DataError(
                    f"{file.path}: categories {ids[name]} and {key} are both called {name!r}; give each its own name, "
                    "or, if they are one class, list it under names: in the data file"
                )
    if not found:
        raise DataError(f"{files[0].path}: lists no categories; add them, or names: to the data file")
    return dict(enumerate(found[key] for key in sorted(found, key=lambda key: (isinstance(key, str), key))))


def _category_name(file: CocoFile, category: dict[str, Any]) -> str:
    name = category.get("name")
    if name is None or not str(name).strip():
        raise DataError(f"{file.path}: category {identity_of(category.get('id'))} has no name; give it one")
    return str(name)


def _point_names(file: CocoFile, category: dict[str, Any]) -> list[str]:
    """Of an object's keypoints; empty where the category does not have or name them."""
    names = category.get("keypoints") or []
    if not isinstance(names, list):
        raise DataError(
            f"{file.path}: keypoints of category {category.get('name')!r}: expected a list of their names, got "
            f"{names!r}; write the list, or leave the key out"
        )
    return [str(name) for name in names]


def _match_categories(file: CocoFile, names: dict[int, str], problems: Problems) -> None:
    numbers = {name: number for number, name in names.items()}
    unwanted = []
    for category in file.entries("categories"):
        number = numbers.get(str(category.get("name")))
        if number is None:
            unwanted.append(str(category.get("name")))
            continue
        file.classes[identity_of(category.get("id"))] = number
        if names_of_points := _point_names(file, category):
            file.points[number] = len(names_of_points)
    if unwanted and not file.classes:
        raise DataError(
            f"{file.path}: none of its categories ({', '.join(unwanted[:5])}, …) is in names; "
            "classes are matched by name"
        )
    if unwanted:
        problems.note(f"{file.path}: {len(unwanted)} categories are not in names and are left out: {unwanted[:5]}")


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
    for annotation in file.entries("annotations"):
        number, values = file.classes.get(identity_of(annotation.get("category_id"))), annotation.get("keypoints")
        if number is not None and isinstance(values, list) and len(values) >= NUMBERS_A_POINT:
            found.setdefault(number, len(values) // NUMBERS_A_POINT)
    return found


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


def _used_categories(file: CocoFile) -> list[dict[str, Any]]:
    return [category for category in file.entries("categories") if identity_of(category.get("id")) in file.classes]


def _flip_by_name(file: CocoFile) -> list[int] | None:
    """What each keypoint becomes in a mirror, where names say left and right."""
    for category in _used_categories(file):
        names = _point_names(file, category)
        mirrored = [_mirror(name) for name in names]
        if names and set(mirrored) == set(names) and len(set(names)) == len(names) and mirrored != names:
            return [names.index(name) for name in mirrored]
    return None


def _skeleton(file: CocoFile, points: int | None) -> list[tuple[int, int]] | None:
    """Pairs of points that a category joins, counted from 0. It is for pictures only: one that is not as it should be
    counts as none."""
    for category in _used_categories(file):
        pairs = category.get("skeleton")
        if points and isinstance(pairs, list) and pairs and all(_is_edge(pair, points) for pair in pairs):
            return [(start - 1, end - 1) for start, end in pairs]  # COCO counts them from 1
    return None


def _is_edge(pair: Any, points: int) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(end) is int and 1 <= end <= points for end in pair)


def _mirror(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")
