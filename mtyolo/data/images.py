"""Image files to upright RGB, by content and not by suffix; no file is ever written.

One rule for damaged files, in the scan and in training alike: what Pillow refuses to decode to the end is not used
(a JPEG without its end marker is refused, bytes after the end marker are ignored).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mtyolo.errors import DataError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".avif"))
SMALLEST_SIDE = 10
"""Pixels. Smaller images hold nothing to find; the limit is that of ultralytics."""
TAIL_BYTES = 4096
EXIF_ORIENTATION = 0x0112
TRANSPOSING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
EIGHT_FROM_SIXTEEN = 257
"""65535 / 255."""


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Decode to [height, width, 3] uint8 RGB, upright. The first frame of several; alpha is dropped.

    16-bit values are divided by 257. Raises DataError: missing, no image, cut off or otherwise damaged.
    """
    with _open(path) as image:
        return upright_rgb(image)


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width after EXIF orientation, from the header. Raises DataError, also where read_image would
    because the file is cut off: the end of JPEG and PNG is looked at, other formats are decoded."""
    with _open(path) as image:
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION) in TRANSPOSING:
            height, width = width, height
        if not _has_end(Path(path), image.format):
            image.load()
    if min(height, width) < SMALLEST_SIDE:
        raise DataError(f"{path}: {width}x{height} pixels; images need at least {SMALLEST_SIDE} pixels on each side")
    return height, width


class _open:
    """Open by content, and turn what Pillow raises inside the block into one DataError."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            _require_regular(Path(self.path))
            self.image = Image.open(self.path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self.image

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if hasattr(self, "image"):
            self.image.close()
        if isinstance(error, UnidentifiedImageError):
            raise DataError(f"{self.path}: not an image ({_first_bytes(self.path)})") from None
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{self.path}: no such file (looked at {Path(self.path).absolute()})") from None
        if isinstance(error, (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)):
            raise DataError(f"{self.path}: the image can not be decoded: {error}") from None


def _require_regular(path: Path) -> None:
    """Opening a pipe would wait for somebody to write to it."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file (a folder, pipe or device)")


def _first_bytes(path: Path | str) -> str:
    with open(path, "rb") as file:
        start = file.read(16)
    return f"it begins with {start!r}" if start else "the file is empty"


def _has_end(path: Path, kind: str | None) -> bool:
    """Is the format's end marker where it should be, so that the file was not cut off?"""
    marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "")
    if marker is None:
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return marker in file.read()


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)
    if image.mode in WIDE_GREY_MODES:
        grey = np.asarray(image, np.float32) / EIGHT_FROM_SIXTEEN
        return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
