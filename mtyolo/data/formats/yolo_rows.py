"""Rows of YOLO txt: lines to numbers, numbers to boxes, polygons and keypoints, or the reason why not."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.formats.masks import polygons_to_rle, shows_something
from mtyolo.data.formats.reading import ImageReading, checked_keypoints
from mtyolo.data.records import Instance, Problems

BOX_COLUMNS = 5
SMALLEST_POLYGON = 7
"""Class and three points."""
TOLERANCE = 0.01
"""How far off the image a value may lie, as a fraction of it: rounding (ultralytics allows as much)."""
PIXELS_FROM = 2.0
"""Values beyond this are more likely pixels than fractions."""
DROPPED = "label row that can not be used (dropped)"


class Row(NamedTuple):
    """One line of numbers, and where it stands."""

    values: NDArray[np.float64]
    place: str


def read_rows(document: Path, classes: int, problems: Problems) -> list[Row]:
    """The usable rows of one file, each once."""
    text = _decoded(document, problems)
    rows: dict[bytes, Row] = {}
    repeated = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{document}:{number}"
        values = _numbers(line)
        reason = values if isinstance(values, str) else _why_unusable(values, classes)
        if isinstance(values, str) or reason:
            problems.add(DROPPED, place, reason or "")
            continue
        repeated += rows.setdefault(values.tobytes(), Row(values, place)).place != place
    if repeated:
        problems.add("label file with equal rows (each counted once)", document, f"{repeated} rows repeat others")
    return list(rows.values())


def _decoded(document: Path, problems: Problems) -> str:
    try:
        content = document.read_bytes()
    except OSError as error:
        problems.add("label file that can not be read (skipped)", document, str(error.strerror))
        return ""
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
        problems.add("label file in UTF-16 (read as such)", document, "most tools read UTF-8 only")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        problems.add("label file that is no text (skipped)", document, f"not {encoding}: {error.reason}")
        return ""


def _numbers(line: str) -> NDArray[np.float64] | str:
    try:
        return np.array([float(word) for word in line.split()])
    except ValueError as error:
        hint = "; separate columns by spaces, not commas" if "," in line else ""
        return f"{error}{hint}"


def _why_unusable(values: NDArray[np.float64], classes: int) -> str | None:
    """What is wrong with a row whatever it describes; None if nothing."""
    if len(values) < BOX_COLUMNS:
        return f"{len(values)} columns; a box has {BOX_COLUMNS}"
    if not np.isfinite(values).all():
        return "a value is not finite"
    if values[0] != int(values[0]):
        return f"class {values[0]:g} is not a whole number"
    if not 0 <= values[0] < classes:
        return f"class {int(values[0])} is not in 0..{classes - 1}"
    box = values[1:BOX_COLUMNS]
    if box.max() > PIXELS_FROM:
        return f"values up to {values[1:].max():g} look like pixels; fractions of the image are expected"
    return None


def box_instance(values: NDArray[np.float64], image: ImageReading) -> Instance | str:
    """class, centre and size in fractions."""
    reason = _outside(values[1:BOX_COLUMNS])
    if reason:
        return reason
    center, size = values[1:3], values[3:BOX_COLUMNS]
    scale = np.array([image.width, image.height])
    low, high = ((center - size / 2).clip(0, 1) * scale), ((center + size / 2).clip(0, 1) * scale)
    if not (size > 0).all() or not (high > low).all():
        return f"a box of {size[0]:g} x {size[1]:g} has no area"
    return Instance(int(values[0]), (float(low[0]), float(low[1]), float(high[0]), float(high[1])))


def _outside(values: NDArray[np.float64]) -> str | None:
    wrong = values[(values < -TOLERANCE) | (values > 1 + TOLERANCE)]
    return f"{wrong[0]:g} is not a fraction of the image, 0 to 1" if len(wrong) else None


def polygon_instance(values: NDArray[np.float64], image: ImageReading) -> Instance | str:
    """class, then x y pairs in fractions."""
    reason = _outside(values[1:])
    if reason:
        return reason
    points = values[1:].reshape(-1, 2).clip(0, 1) * np.array([image.width, image.height])
    low, high = points.min(0), points.max(0)
    edges = points - points[0]
    longest = edges[np.argmax((edges**2).sum(1))]
    if np.abs(edges[:, 0] * longest[1] - edges[:, 1] * longest[0]).max() <= 1e-6 * max(1.0, float((longest**2).sum())):
        return "the polygon's points lie on one line: it encloses nothing"
    rle = polygons_to_rle([points.reshape(-1).tolist()], image.height, image.width)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Instance(int(values[0]), box, rle if shows_something(rle) else None)


def keypoint_instance(
    row: Row, image: ImageReading, kpt_shape: tuple[int, int] | None, problems: Problems
) -> Instance | str:
    """class, box, then the keypoints in fractions."""
    columns = len(row.values)
    if columns == BOX_COLUMNS:
        return f"keypoints are missing: {columns} columns, {_pose_width(kpt_shape)}"
    if kpt_shape is None:
        return f"{columns} columns in a keypoint file, and no kpt_shape in the data file"
    if columns != BOX_COLUMNS + kpt_shape[0] * kpt_shape[1]:
        return f"{columns} columns, {_pose_width(kpt_shape)}"
    box = box_instance(row.values, image)
    if isinstance(box, str):
        return box
    points = row.values[BOX_COLUMNS:].reshape(kpt_shape).astype(np.float32)
    if kpt_shape[1] == 2:
        # Without flags, a point at the origin (or before it) is how unlabelled ones are written.
        flags = np.where((points > 0).any(1) & (points >= 0).all(1), 2.0, 0.0)
        points = np.concatenate([points, flags[:, None].astype(np.float32)], 1)
    points[:, :2] *= (image.width, image.height)
    report = (lambda text: problems.add("keypoint set right", row.place, text))  # fmt: skip  # noqa: E731
    return box._replace(keypoints=checked_keypoints(points, image.width, image.height, report))


def _pose_width(kpt_shape: tuple[int, int] | None) -> str:
    if kpt_shape is None:
        return "more are expected"
    points, values = kpt_shape
    return f"{BOX_COLUMNS + points * values} expected for kpt_shape [{points}, {values}]"
