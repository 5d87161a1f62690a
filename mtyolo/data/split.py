"""From a data file to a split: its images, labels, class names, and the account of what was wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtyolo.config.reading import nearest
from mtyolo.data.formats.coco import read_coco
from mtyolo.data.formats.coco_annotations import SKIPPED
from mtyolo.data.formats.reading import ImageReading, Reading, find_images, sizes_of
from mtyolo.data.formats.yolo import LABEL_FOLDERS, label_path, label_root, read_yolo
from mtyolo.data.formats.yolo_rows import DROPPED
from mtyolo.data.records import ImageRecord, Problems, Split, labels_of
from mtyolo.data.sources import SPLITS, Data, DataSource, read_data
from mtyolo.errors import ConfigError, DataError
from mtyolo.geometry import default_sigmas


def load_split(source: Data | DataSource, split: str, *, strict: bool = False) -> Split:
    """Read one split: "train", "val" or "test".

    Images and labels that can not be used are skipped, named and counted in `.problems`; with `strict` the first is a
    DataError. Raises ConfigError and DataError for what leaves nothing to work on. No file is changed.
    """
    data = read_data(source)
    _require_split(data, split)
    problems = Problems(strict=strict)
    names = data.names()
    readings = [_reading(part, split, problems) for part in data.parts() if part.has_own(split)]
    names = _united(readings) if names is None else names
    images = [image for reading in readings for image in _in_classes(reading, names, problems)]
    if not images:
        raise DataError(f"{data.place(split)}: {split}: no usable image in {_looked_in(data, split)}{_first(problems)}")
    if split == "train" and not any(image.instances for image in images):
        _refuse_unusable_labels(data.place(split), problems)
    return _split(data, split, readings, images, names, problems)


def some_of(split: Split, count: int) -> Split:
    """So many images, if there are, spread over the split."""
    numbers = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    return replace(split, records=[split.records[number] for number in np.unique(numbers)])


def _refuse_unusable_labels(place: str, problems: Problems) -> None:
    """Labels of which not one can be used are a mistake about their format: training would find nothing."""
    unusable = [kind for kind in (DROPPED, SKIPPED) if problems.counts[kind]]
    if unusable:
        count, first = sum(problems.counts[kind] for kind in unusable), problems.examples[unusable[0]][0]
        raise DataError(
            f"{place}: train: none of its labels can be used ({count} are wrong, the first: {first}); set them right"
        )


def _first(problems: Problems) -> str:
    first = next((kept[0] for kept in problems.examples.values()), None)
    return f"; {len(problems)} problems, the first: {first}" if first else ""


def _require_split(data: DataSource, split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"no split is called {split!r}; {nearest(split, SPLITS)}")
    if not data.has(split):
        present = [name for name in SPLITS if data.has(name)]
        raise DataError(
            f"{data.place()}: has no {split} split (it has {', '.join(present) or 'none'}); "
            f"add {split}: with the folder of its images"
        )


def _looked_in(data: DataSource, split: str) -> str:
    return ", ".join(str(folder) for part in data.parts() if part.has_own(split) for folder in part.folders(split))


def _reading(data: DataSource, split: str, problems: Problems) -> Reading:
    """What one data file says about a split, without the files that it joins."""
    files, names = data.annotation_files(split), data.names()
    if files:
        points = data.config.kpt_shape[0] if data.config.kpt_shape else None
        return _with_overrides(data, read_coco(files, data.folders(split), names, points, problems))
    if names is None:
        raise ConfigError(
            f"{data.place()}: neither names nor nc says which classes there are; add names: {{0: person, …}}"
        )
    if not names:
        return Reading([ImageReading(*image) for image in _pictures(data.folders(split), problems)], names)
    labels = data.label_names()
    reading = read_yolo(data.folders(split), labels or None, names, data.config.kpt_shape, problems)
    _require_labels(data, labels, reading.images)
    if not any(image.instances for image in reading.images):
        problems.add("no label in the whole split", data.place(split), _where_labels_go(data, split))
    return _with_overrides(data, reading)


def _pictures(folders: list[Path], problems: Problems) -> list[tuple[Path, int, int]]:
    return [(path, *size) for path, size in sizes_of(find_images(folders), problems).items()]


def _require_labels(data: DataSource, labels: list[str], images: list[ImageReading]) -> None:
    """What `labels:` names must be there, if not for this split; it would pass for background."""
    for number, name in enumerate(labels):
        roots = sorted({label_root(image.path, name) for image in images})
        if roots and not any(map(os.path.isdir, roots)):
            raise DataError(f"{data.place('labels', number)}: labels: no such folder: {roots[0]}")


def _where_labels_go(data: DataSource, split: str) -> str:
    labels = " or ".join(data.label_names() or LABEL_FOLDERS)
    return (
        f"no object found; for images in {data.folders(split)[0]} labels are looked for with images "
        f"replaced by {labels}"
    )


def label_places(data: DataSource, split: str) -> list[Path]:
    """Where the labels of a split belong: json files, or folders of txt files beside its first image; none for
    pictures without classes."""
    places: list[Path] = []
    for part in (part for part in data.parts() if part.has_own(split) and part.names() != {}):
        images = [] if part.annotation_files(split) else find_images(part.folders(split))[:1]
        names = part.label_names() or LABEL_FOLDERS
        places += part.annotation_files(split) + [label_path(image, name).parent for image in images for name in names]
    return list(dict.fromkeys(places))


def _with_overrides(data: DataSource, reading: Reading) -> Reading:
    """Apply `tasks:` and `flip_idx:` of the data file."""
    if data.config.tasks is not None:
        if "keypoint" in data.config.tasks and reading.points is None:
            raise ConfigError(f"{data.place('tasks')}: keypoint labels need kpt_shape: [points, 3]")
        for image in reading.images:
            image.labelled = set(data.config.tasks)
    return replace(reading, flip_idx=data.config.flip_idx or reading.flip_idx)


def _united(readings: list[Reading]) -> dict[int, str]:
    return dict(enumerate(dict.fromkeys(name for reading in readings for name in reading.names.values())))


def _in_classes(reading: Reading, names: dict[int, str], problems: Problems) -> list[ImageReading]:
    """The reading's images with their classes renumbered by name; objects of other classes are left out."""
    if reading.names == names:
        return reading.images
    numbers = {name: number for number, name in names.items()}
    renumbered = {number: numbers[name] for number, name in reading.names.items() if name in numbers}
    unknown = [name for name in reading.names.values() if name not in numbers]
    if unknown:
        problems.note(f"joined classes that are not in names are left out: {', '.join(unknown[:10])}")
    if len(renumbered) < len(names):
        problems.note(
            f"{len(reading.images)} joined images are labelled for {len(renumbered)} of {len(names)} classes; "
            "objects of the others count as background there"
        )
    for image in reading.images:
        image.instances = [
            instance._replace(class_number=renumbered[instance.class_number])
            for instance in image.instances
            if instance.class_number in renumbered
        ]
    return reading.images


def _split(
    data: DataSource,
    split: str,
    readings: list[Reading],
    images: list[ImageReading],
    names: dict[int, str],
    problems: Problems,
) -> Split:
    labelled = frozenset[str]().union(*(image.labelled for image in images))
    points = _common_points(data, readings) if "keypoint" in labelled else None
    if points:
        _check_about_points(data, points)
    flip_idx = next((reading.flip_idx for reading in readings if reading.flip_idx), None)
    masks = "segment" in labelled
    records = [
        ImageRecord(
            image.path,
            image.height,
            image.width,
            labels_of(image.instances, image.labelled, masks=masks, points=points),
            image.identity,
        )
        for image in images
    ]
    return Split(
        split,
        records,
        names,
        problems,
        points=points,
        flip_idx=flip_idx if points else None,
        sigmas=(data.config.kpt_sigmas or default_sigmas(points)) if points else None,
        category_ids=readings[0].category_ids if len(readings) == 1 else None,
        skeleton=_skeleton(data, readings) if points else None,
    )


def _skeleton(data: DataSource, readings: list[Reading]) -> list[tuple[int, int]] | None:
    if data.config.skeleton is not None:
        return data.config.skeleton
    return next((reading.skeleton for reading in readings if reading.skeleton), None)


def _check_about_points(data: DataSource, points: int) -> None:
    """What each data file says about points, against how many the labels have: kpt_shape need not be there."""
    for part in (part for part in data.parts() if part.gives_points):
        if mistake := part.config.mistake_about(points, "the labels have"):
            raise ConfigError(f"{part.place(mistake[0])}: {mistake[1]}")


def _common_points(data: DataSource, readings: list[Reading]) -> int | None:
    found = sorted({reading.points for reading in readings if reading.points})
    if len(found) > 1:
        raise DataError(f"{data.place('join')}: joined data sets have {found} keypoints; they must have the same")
    return found[0] if found else None
