"""What a split holds, counted, and what is likely to disappoint who trains on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtyolo.data.records import ImageRecord, Labels, Split

TINY = 8
"""Pixels of the network input: a cell of the finest usual stride."""
MANY = 0.1
"""A share of objects that is worth a remark."""


@dataclass(frozen=True)
class SplitReport:
    """Objects are those that can be learned: not crowd regions. tiny: whose longer side is under TINY pixels when the
    image is as large as the network input."""

    name: str
    images: int
    empty: int  # images without an object
    crowd: int  # regions
    labelled: dict[str, int]  # task -> images
    objects: dict[str, int]  # task -> objects that show it
    classes: dict[str, int]  # name -> objects
    tiny: int
    smallest: tuple[int, int]  # height, width of images
    largest: tuple[int, int]
    problems: dict[str, int]  # kind -> how often

    def as_dict(self) -> dict[str, Any]:
        return self.__dict__.copy()


def report_on(split: Split, size: int) -> SplitReport:
    """size: side of the network input in pixels."""
    labels = [record.labels.select(~record.labels.crowd) for record in split.records]
    counts = Counter(number for one in labels for number in one.classes.tolist())
    areas = [(record.height, record.width) for record in split.records]
    return SplitReport(
        name=split.name,
        images=len(split),
        empty=sum(not len(one) for one in labels),
        crowd=sum(int(record.labels.crowd.sum()) for record in split.records),
        labelled={task: split.count(task) for task in split.tasks},
        objects={task: sum(_showing(one, task) for one in labels) for task in split.tasks},
        classes={name: counts[number] for number, name in split.names.items()},
        tiny=sum(_tiny(record, one, size) for record, one in zip(split.records, labels, strict=True)),
        smallest=min(areas, key=lambda sides: sides[0] * sides[1]),
        largest=max(areas, key=lambda sides: sides[0] * sides[1]),
        problems=dict(split.problems.counts),
    )


def remarks(reports: Sequence[SplitReport], size: int) -> Iterator[str]:
    """What is no mistake in the labels, and yet wants a look."""
    yield from _never_learned(reports)
    for found in reports:
        total = found.objects.get("detect", 0)
        if not total:
            yield f"{found.name}: no image has a labelled object; labels are read where docs/data.md says"
        elif found.tiny > MANY * total:
            yield (
                f"{found.name}: {found.tiny} of {total} objects are under {TINY} pixels at --imgsz {size}, and hardly "
                "found; a larger size sees more of them"
            )
        for task, images in found.labelled.items():
            if images < found.images:
                yield f"{found.name}: {images} of {found.images} images are labelled for {task}, the rest do not count"


def _never_learned(reports: Sequence[SplitReport]) -> Iterator[str]:
    """Classes that train does not show, those of other splits where they do."""
    train = next((found for found in reports if found.name == "train" and found.objects.get("detect")), None)
    for found in reports if train is not None else ():
        fresh = [name for name, count in found.classes.items() if train is not None and not train.classes.get(name)]
        if found is not train:
            fresh = [name for name in fresh if found.classes[name]]
        if fresh:
            what = "have no object" if found is train else "have objects here and none in train"
            yield f"{found.name}: {len(fresh)} of {len(found.classes)} classes {what}: {_some(fresh)}"


def shared_pictures(one: Split, other: Split) -> list[tuple[Path, Path]]:
    """Pictures of one split that are in the other, too, byte by byte; whatever they are called."""
    sizes = [_by_length(split.records) for split in (one, other)]
    common = sizes[0].keys() & sizes[1].keys()
    known = {_digest(path): path for length in common for path in sizes[1][length]}
    pairs = [(path, known.get(_digest(path))) for length in sorted(common) for path in sizes[0][length]]
    return [(path, twin) for path, twin in pairs if twin is not None]


def copies(split: Split) -> list[tuple[Path, Path]]:
    """Pictures that are another of the same split once more, byte by byte, and that other."""
    first: dict[bytes, Path] = {}
    same = (paths for paths in _by_length(split.records).values() if len(paths) > 1)
    pairs = [(path, first.setdefault(_digest(path), path)) for paths in same for path in paths]
    return [(path, twin) for path, twin in pairs if path != twin]


def _showing(labels: Labels, task: str) -> int:
    if task not in labels.labelled:
        return 0
    if task == "segment":
        return sum(segment is not None for segment in labels.segments or ())
    if task == "keypoint":
        return 0 if labels.keypoints is None else int((labels.keypoints[..., 2] > 0).any(1).sum())
    return len(labels)


def _tiny(record: ImageRecord, labels: Labels, size: int) -> int:
    sides = labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]
    return int(np.count_nonzero(sides.max(1, initial=0) * size / max(record.height, record.width) < TINY))


def _by_length(records: Sequence[ImageRecord]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = defaultdict(list)
    for record in records:
        if record.path.is_file():
            found[record.path.stat().st_size].append(record.path)
    return found


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
