"""What reading labels gives: records of images with their labels, and an account of what was wrong."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtyolo.errors import DataError

Rle = dict[str, Any]
"""COCO run lengths: {"size": [height, width], "counts": bytes}."""

TASKS = ("detect", "segment", "keypoint")
UNMIRRORED = "mirroring is off: the data file has keypoints and no flip_idx (what each becomes in a mirror)"
EXAMPLES_KEPT = 20
"""Messages kept for each kind of problem; the count goes on."""


class Problem(NamedTuple):
    """One thing that was wrong: its kind (what is counted), where (file:line), and what was done."""

    kind: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass
class Problems:
    """What was wrong with labels, counted. With `strict` the first problem is a DataError; notes never are."""

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Problem]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, place: object, text: str) -> None:
        problem = Problem(kind, str(place), text)
        if self.strict:
            raise DataError(str(problem))
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES_KEPT:
            kept.append(problem)

    def note(self, text: str) -> None:
        """Something worth knowing that is no mistake."""
        self.notes.append(text)

    def join(self, other: Problems) -> None:
        self.counts.update(other.counts)
        for kind, problems in other.examples.items():
            kept = self.examples.setdefault(kind, [])
            kept.extend(problems[: EXAMPLES_KEPT - len(kept)])
        self.notes.extend(other.notes)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def summary(self, examples: int = 3) -> str:
        """A line for each kind with its count, the first places below it, then the notes. Empty if all is well."""
        lines = []
        for kind, count in self.counts.most_common():
            lines.append(f"{count} x {kind}")
            lines += [f"    {problem}" for problem in self.examples[kind][:examples]]
            if count > examples:
                lines.append(f"    … and {count - examples} more")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


@dataclass(slots=True)
class Labels:
    """The labels of one image: n objects. Coordinates in pixels of the upright original image."""

    classes: NDArray[np.int64]  # [n]
    boxes_xyxy: NDArray[np.float32]  # [n, 4]
    crowd: NDArray[np.bool_]  # [n]: a region to ignore in evaluation, never a training target
    segments: list[Rle | None] | None = None  # None: no masks in this split; an entry None: this object has none
    keypoints: NDArray[np.float32] | None = None  # [n, K, 3] x, y, v in {0, 1, 2}
    areas: NDArray[np.float32] | None = None  # [n] pixels of each object as its json says; 0 where it does not
    labelled: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, index: NDArray[Any]) -> Labels:
        """The objects that a boolean or integer index picks."""
        numbers = np.arange(len(self))[index]
        return replace(
            self,
            classes=self.classes[numbers],
            boxes_xyxy=self.boxes_xyxy[numbers],
            crowd=self.crowd[numbers],
            segments=None if self.segments is None else [self.segments[number] for number in numbers],
            keypoints=None if self.keypoints is None else self.keypoints[numbers],
            areas=None if self.areas is None else self.areas[numbers],
        )


@dataclass(slots=True)
class ImageRecord:
    """One image file and its labels. Height and width in pixels, after EXIF orientation."""

    path: Path
    height: int
    width: int
    labels: Labels
    identity: int | str | None = None
    """The image's id in its COCO json."""


@dataclass
class Split:
    """One split of a data set: everything that training and evaluation ask of it."""

    name: str
    records: list[ImageRecord]
    names: dict[int, str]
    problems: Problems
    points: int | None = None
    flip_idx: list[int] | None = None
    sigmas: list[float] | None = None
    category_ids: dict[int, int] | None = None
    """Class -> category id of the COCO json, for export."""
    skeleton: list[tuple[int, int]] | None = None
    """Pairs of points, from 0, that pictures join; None: COCO's for 17 points."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What at least one image is labelled for."""
        found = frozenset[str]().union(*(record.labels.labelled for record in self.records))
        return tuple(task for task in TASKS if task in found)

    @property
    def taught(self) -> tuple[str, ...]:
        """Of these, what some object shows: images of which none has a labelled point teach no keypoints."""
        return tuple(task for task in self.tasks if task != "keypoint" or self.keypoint_classes)

    @property
    def shows_nothing(self) -> bool:
        """Is there no object to learn from? Crowd regions are none."""
        return all(record.labels.crowd.all() for record in self.records)

    @property
    def may_mirror(self) -> bool:
        """Is it known what each label becomes in a mirror?"""
        return self.points is None or self.flip_idx is not None

    def fingerprint(self) -> str:
        """Differs where images, their order or their objects do."""
        found = hashlib.sha256()
        for record in self.records:
            labels = record.labels
            found.update(f"{record.path.name} {record.height}x{record.width} {sorted(labels.labelled)}".encode())
            arrays = labels.classes, labels.boxes_xyxy, labels.crowd, labels.keypoints
            found.update(b"".join(array.tobytes() for array in arrays if array is not None))
            found.update(repr(labels.segments).encode())
        return found.hexdigest()

    def count(self, task: str) -> int:
        """Images that are labelled for a task."""
        return sum(task in record.labels.labelled for record in self.records)

    @property
    def keypoint_classes(self) -> list[int]:
        """Classes of which some object has a labelled point, in images that are labelled for keypoints."""
        labels = [record.labels for record in self.records if "keypoint" in record.labels.labelled]
        found = [one.classes[(one.keypoints[..., 2] > 0).any(1)] for one in labels if one.keypoints is not None]
        return np.unique(np.concatenate(found)).tolist() if found else []


def names_differ(data: Mapping[int, str], model: Mapping[int, str]) -> str | None:
    """Which class is called differently, in words; None where all agree, or one of the two only counts its classes."""
    if _only_counts(data) or _only_counts(model):
        return None
    different = [n for n in data if data[n].strip().casefold() != model.get(n, "").strip().casefold()]
    if not different:
        return None
    first = different[0]
    return (
        f"{len(different)} of {len(data)} classes are called differently: "
        f"{first} is {data[first]!r} in the data and {model.get(first)!r} in the model"
    )


def _only_counts(names: Mapping[int, str]) -> bool:
    """Are these what programs write who were told no names: 0, class0, class_0; or item, for a single class?"""
    return list(names.values()) == ["item"] or all(
        re.fullmatch(rf"(class_?)?{number}", name) for number, name in names.items()
    )


def pictures_only(split: Split) -> Split:
    """The split without its objects, where only its pictures are to be prepared."""
    none = np.zeros(0, np.int64)
    records = [replace(record, labels=record.labels.select(none)) for record in split.records]
    return replace(split, records=records)


def without_keypoints(split: Split) -> Split:
    """The split without labels of keypoints, for who does not learn them: they need not follow into mirrors."""
    records = [
        replace(record, labels=replace(labels, keypoints=None, labelled=labels.labelled - {"keypoint"}))
        for record in split.records
        for labels in [record.labels]
    ]
    return replace(split, records=records, points=None, flip_idx=None, sigmas=None, skeleton=None)


class Instance(NamedTuple):
    """One object while a file is being read. Pixels of the upright original image."""

    class_number: int
    box_xyxy: tuple[float, float, float, float]
    segment: Rle | None = None
    keypoints: NDArray[np.float32] | None = None  # [K, 3]
    crowd: bool = False
    area: float = 0.0
    """Pixels, as the label says; 0 where it does not."""


def labels_of(instances: Iterable[Instance], labelled: Iterable[str], *, masks: bool, points: int | None) -> Labels:
    """Gather objects into arrays. `masks`, `points`: what the split has, so that all records have one form."""
    found = list(instances)
    none = np.zeros((points or 0, 3), np.float32)
    keypoints = [none if item.keypoints is None else item.keypoints for item in found]
    return Labels(
        classes=np.array([item.class_number for item in found], np.int64),
        boxes_xyxy=np.array([item.box_xyxy for item in found], np.float32).reshape(-1, 4),
        crowd=np.array([item.crowd for item in found], np.bool_),
        segments=[item.segment for item in found] if masks else None,
        keypoints=None if points is None else np.array(keypoints, np.float32).reshape(-1, points, 3),
        areas=np.array([item.area for item in found], np.float32),
        labelled=frozenset(labelled),
    )
