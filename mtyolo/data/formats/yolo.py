"""YOLO txt to objects: rows of labels, labels-seg and labels-pose, merged where they describe the same object.

Rules: a row that can not be used is dropped and named, the rest of its file stays; a row with a value off the image by
more than one percent is dropped, closer ones are clipped; equal rows count once; in a folder of polygons a row of five
columns is a box without a mask.
What a missing file means: no object of the classes that its folder labels. Where another folder shows such an object in
the image, the image is not labelled for that task. No file at all: background.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.formats.reading import ImageReading, Reading, box_overlap, find_images, sizes_of
from mtyolo.data.formats.yolo_rows import (
    BOX_COLUMNS,
    DROPPED,
    SMALLEST_POLYGON,
    Row,
    box_instance,
    keypoint_instance,
    polygon_instance,
    read_rows,
)
from mtyolo.data.records import Instance, Problems

SAME_OBJECT_OVERLAP = 0.3
"""IoU of boxes from two folders, mutually best in one class, that makes them one object. A box around a polygon is
often a pixel off, which for a small object is much."""
LABEL_FOLDERS = ("labels", "labels-seg", "labels-pose")
SUFFIX_TASKS = {"-seg": "segment", "-pose": "keypoint"}


@dataclass(eq=False)
class LabelFolder:
    """One kind of label files, and what they turn out to label."""

    name: str
    rows: dict[Path, list[Row]] = field(default_factory=dict)  # image -> rows; no entry: no file
    classes: set[int] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str | None:
        return next((task for suffix, task in SUFFIX_TASKS.items() if self.name.endswith(suffix)), None)


def read_yolo(
    folders: Sequence[Path],
    label_names: Sequence[str] | None,
    names: dict[int, str],
    kpt_shape: tuple[int, int] | None,
    problems: Problems,
) -> Reading:
    """Read the label files that belong to the images in `folders`. `label_names`: None for LABEL_FOLDERS."""
    paths = find_images(folders)
    sizes = sizes_of(paths, problems)
    images = {path: ImageReading(path, *size) for path, size in sizes.items()}
    label_folders = [LabelFolder(name) for name in label_names or LABEL_FOLDERS]
    for folder in label_folders:
        for path in paths:
            document = label_path(path, folder.name)
            if os.path.isfile(document) and path in images:
                folder.rows[path] = read_rows(document, len(names), problems)
    _note_missing(images, label_folders, paths, problems)
    kpt_shape = kpt_shape or _inferred_shape(label_folders)
    for folder in label_folders:
        for path, rows in folder.rows.items():
            found = [_instance(row, folder, images[path], kpt_shape, problems) for row in rows]
            _report_mixture(found, folder, path, problems)
            _merge(images[path], [instance for instance in found if instance is not None])
    _mark_labelled(images, [folder for folder in label_folders if folder.rows])
    return Reading(list(images.values()), names, kpt_shape[0] if kpt_shape else None)


def label_path(image: Path, folder: str) -> Path:
    """images/train/a.jpg -> labels/train/a.txt: the last folder called images is replaced; if none is, beside it."""
    parts = list(image.parent.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = folder
            return Path(*parts, image.stem + ".txt")
    return image.with_suffix(".txt") if folder == "labels" else image.parent / folder / (image.stem + ".txt")


def label_root(image: Path, folder: str) -> Path:
    """Where `label_path` looks for the labels of all splits: images/train/a.jpg -> labels."""
    for parent in image.parents:
        if parent.name == "images":
            return parent.parent / folder
    return image.parent if folder == "labels" else image.parent / folder


def _note_missing(
    images: dict[Path, ImageReading], folders: Sequence[LabelFolder], paths: Sequence[Path], problems: Problems
) -> None:
    bare = [path for path in images if not any(path in folder.rows for folder in folders)]
    if bare:
        problems.note(f"{len(bare)} images have no label file and count as background, the first: {bare[0]}")
    known = {label_path(path, folder.name) for path in paths for folder in folders}
    places = sorted(place for place in {path.parent for path in known} if os.path.isdir(place))
    orphans = [file for place in places for file in place.glob("*.txt")]
    orphans = [file for file in orphans if file not in known]
    if orphans:
        problems.note(f"{len(orphans)} label files have no image and are ignored, the first: {orphans[0]}")


def _inferred_shape(folders: Sequence[LabelFolder]) -> tuple[int, int] | None:
    """[points, 2 or 3] from the width of most rows in pose folders; None where it is not clear."""
    rows = [
        row.values for folder in folders if folder.kind == "keypoint" for rows in folder.rows.values() for row in rows
    ]
    widths = Counter(len(values) for values in rows if len(values) > BOX_COLUMNS)
    if not widths:
        return None
    width, count = widths.most_common(1)[0]
    numbers = width - BOX_COLUMNS
    if count * 2 <= widths.total():
        return None
    if numbers % 6 == 0:
        # Pairs or triples: a visibility in every third place tells.
        flags = np.stack([values[BOX_COLUMNS:] for values in rows if len(values) == width])[:, 2::3]
        return (numbers // 3, 3) if np.isin(flags, (0, 1, 2)).all() else (numbers // 2, 2)
    if numbers % 3 and numbers % 2:
        return None
    return (numbers // 3, 3) if numbers % 3 == 0 else (numbers // 2, 2)


def _instance(
    row: Row, folder: LabelFolder, image: ImageReading, kpt_shape: tuple[int, int] | None, problems: Problems
) -> Instance | None:
    """The object that a row describes, or None (a problem then)."""
    columns = len(row.values)
    pose_columns = BOX_COLUMNS + kpt_shape[0] * kpt_shape[1] if kpt_shape else None
    found: Instance | str
    if folder.kind == "keypoint" or (folder.kind is None and columns == pose_columns):
        found = keypoint_instance(row, image, kpt_shape, problems)
        task = "keypoint"
    elif columns == BOX_COLUMNS:
        found, task = box_instance(row.values, image), "detect"
    elif columns >= SMALLEST_POLYGON and columns % 2 == 1:
        found, task = polygon_instance(row.values, image), "segment"
    elif folder.kind == "segment":
        found, task = f"{columns - 1} coordinates; a polygon has pairs, three or more", ""
    else:
        hint = "; a confidence does not belong here" if columns == BOX_COLUMNS + 1 else ""
        found, task = f"{columns} columns; a box has {BOX_COLUMNS}, a polygon an odd number{hint}", ""
    if isinstance(found, str):
        problems.add(DROPPED, row.place, found)
        return None
    if task == "detect" and folder.kind == "segment":
        problems.add("box in a file of polygons (used without a mask)", row.place, "two points: read as a box")
    folder.classes.add(found.class_number)
    folder.tasks.add(task)
    return found


def _report_mixture(found: Sequence[Instance | None], folder: LabelFolder, path: Path, problems: Problems) -> None:
    """Boxes and polygons in one file of a folder that may hold either."""
    boxes = sum(instance is not None and instance.segment is None for instance in found)
    polygons = sum(instance is not None and instance.segment is not None for instance in found)
    if folder.kind is None and boxes and polygons and not any(item and item.keypoints is not None for item in found):
        place = label_path(path, folder.name)
        problems.add("boxes and polygons in one file (both used)", place, f"{boxes} boxes without a mask")


def _merge(image: ImageReading, found: list[Instance]) -> None:
    """Add a folder's objects to an image; those that are mutually best in one class complete what is there."""
    known = image.instances
    pairs = [
        (box_overlap(old.box_xyxy, new.box_xyxy), first, second)
        for first, old in enumerate(known)
        for second, new in enumerate(found)
        if old.class_number == new.class_number
    ]
    taken_old: set[int] = set()
    taken_new: set[int] = set()
    for overlap, first, second in sorted(pairs, reverse=True):
        if overlap < SAME_OBJECT_OVERLAP:
            break
        if first in taken_old or second in taken_new:
            continue
        taken_old.add(first)
        taken_new.add(second)
        new = found[second]
        old = known[first]
        known[first] = old._replace(segment=old.segment or new.segment, keypoints=_first(old.keypoints, new.keypoints))
    known.extend(new for second, new in enumerate(found) if second not in taken_new)


def _first(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return other if one is None else one


def _mark_labelled(images: dict[Path, ImageReading], folders: Sequence[LabelFolder]) -> None:
    everything = set().union(*(folder.classes for folder in folders))
    for path, image in images.items():
        present = [folder for folder in folders if path in folder.rows]
        if not present or set().union(*(folder.classes for folder in present)) >= everything:
            image.labelled.add("detect")
        shown = {instance.class_number for instance in image.instances}
        for task in ("segment", "keypoint"):
            having = [folder for folder in folders if task in folder.tasks]
            labels_it = any(folder in present for folder in having)
            if having and (labels_it or not shown & set().union(*(folder.classes for folder in having))):
                image.labelled.add(task)
