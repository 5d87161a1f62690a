"""What every label format gives, and what they share: finding images and learning their sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.images import IMAGE_SUFFIXES, image_size
from mtyolo.data.records import Instance, Problems
from mtyolo.errors import DataError

SCAN_THREADS = 8
"""Reading headers waits for the disk, not for the processor."""


@dataclass(slots=True)
class ImageReading:
    """One image while its split is being read."""

    path: Path
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)
    labelled: set[str] = field(default_factory=set)
    identity: int | str | None = None


@dataclass(slots=True)
class Reading:
    """What the label files of one split say, in the classes of `names`."""

    images: list[ImageReading]
    names: dict[int, str]
    points: int | None = None
    flip_idx: list[int] | None = None
    category_ids: dict[int, int] | None = None
    skeleton: list[tuple[int, int]] | None = None


def find_images(folders: Iterable[Path]) -> list[Path]:
    """All image files below the folders (or named in a .txt list), sorted, each once. Suffixes in any case."""
    found: dict[Path, None] = {}
    for folder in folders:
        if folder.is_file():
            found.update(dict.fromkeys(_listed(folder)))
            continue
        for parent, names in sorted(folders_below(folder)):
            paths = (Path(parent, name) for name in sorted(names))
            found.update(dict.fromkeys(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES))
    return list(found)


def folders_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder once, with the names of its files. Raises DataError where one can not be read."""
    # Links are followed, but not to what lies above: that would be a loop, or the images of other splits.
    seen = {_on_disk(parent) for parent in folder.resolve().parents}
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        place = _on_disk(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        # A folder goes before links to it: labels are found by its own name.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        yield parent, names


def _on_disk(folder: Path | str) -> tuple[int, int]:
    """What is the same for all names of a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename}: the folder can not be read ({error.strerror}); "
        "let it be read, or name the images in a .txt list in place of their folder"
    )


def _listed(document: Path) -> list[Path]:
    try:
        lines = document.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{document}: expected a folder of images, or a text file that lists them") from None
    return [Path(os.path.abspath(document.parent / line.strip())) for line in lines if line.strip()]


def sizes_of(paths: Sequence[Path], problems: Problems) -> dict[Path, tuple[int, int]]:
    """Path -> height, width of every usable image; the others become problems."""
    sizes: dict[Path, tuple[int, int]] = {}
    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        for path, size in zip(paths, threads.map(_size_or_reason, paths), strict=True):
            if isinstance(size, str):
                problems.add("image that can not be used (skipped)", path, size.removeprefix(f"{path}: "))
            else:
                sizes[path] = size
    return sizes


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        return image_size(path)
    except DataError as error:
        return str(error)


def box_overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two xyxy boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def checked_keypoints(
    keypoints: NDArray[np.float32], width: int, height: int, report: Callable[[str], None]
) -> NDArray[np.float32]:
    """[K, 3] pixels: an odd visibility counts as visible, a point off the image (or not finite) as not labelled."""
    flags = keypoints[:, 2]
    odd = ~np.isin(flags, (0, 1, 2))
    if odd.any():
        report(f"visibility {flags[odd][0]:g} is not 0, 1 or 2; taken as visible")
        flags[odd] = 2
    inside = (keypoints[:, 0] >= 0) & (keypoints[:, 0] <= width) & (keypoints[:, 1] >= 0) & (keypoints[:, 1] <= height)
    outside = ~inside & (flags > 0)
    if outside.any():
        report(f"{int(outside.sum())} keypoints lie outside the image; their visibility is set to 0")
    keypoints[~inside] = 0
    return keypoints
