"""What to predict on: image files, folders, globs, arrays, PIL images, and lists of these."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtyolo.data.images import IMAGE_SUFFIXES, read_image, upright_rgb
from mtyolo.errors import DataError
from mtyolo.structures import Letterbox, Pyramid

Picture = NDArray[np.uint8]
Given = str | Path | Picture | Image.Image
Sources = Given | Sequence[Given]

logger = logging.getLogger(__name__)

FOLDERS_LOOKED_AT = 1000
"""For a remark; a folder takes well below a millisecond."""
ADDRESS = re.compile(r"[a-z]{2,}:/", re.IGNORECASE)
"""How https://… begins, also as a Path, which has one slash of two."""
VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv"))


class Source(NamedTuple):
    """One image to be read, or given already."""

    path: Path | None
    pixels: Picture | None = None

    def read(self) -> Picture:
        """[height, width, 3] uint8 RGB, upright. Raises DataError naming the file."""
        if self.pixels is not None:
            return self.pixels
        assert self.path is not None
        if self.path.suffix.lower() in VIDEO_SUFFIXES:
            raise DataError(f"{self.path}: videos are not read; write its frames to image files first")
        return read_image(self.path)


class Inputs(NamedTuple):
    """Some sources, ready for the network: as pixels or as features."""

    sources: list[Source]
    letterboxes: list[Letterbox]
    images: Tensor | None = None  # [B, 3, H, W] uint8 RGB
    pyramid: Pyramid | None = None


def find_sources(sources: Sources) -> list[Source]:
    """Every image that is meant, in order; a folder's and a glob's by name. Files are not opened yet.

    Raises DataError for a path, folder or glob that holds no image, with the absolute path that was looked at.
    """
    several = isinstance(sources, Iterable) and not isinstance(sources, str | np.ndarray | Tensor)
    given: Iterable[Any] = sources if several else [sources]  # type: ignore[assignment]
    found = [source for one in given for source in _find(one)]
    if not found:
        raise DataError("nothing to predict on: the list of sources is empty")
    return found


def _find(given: Given) -> list[Source]:
    if isinstance(given, Image.Image):
        return [Source(None, _pixels_of(given))]
    if isinstance(given, np.ndarray):
        return [Source(None, _checked(given))]
    if not isinstance(given, str | Path):
        raise DataError(
            f"{type(given).__name__}: expected image files, folders, globs, uint8 RGB arrays [height, width, 3] or PIL "
            "images; of a tensor [3, height, width] in 0..1 give (255 * tensor).byte().permute(1, 2, 0).numpy()"
        )
    if ADDRESS.match(str(given)) and not os.path.exists(given):  # Path.exists raises for names as long as addresses
        raise DataError(f"{given}: addresses are not read; download it first, and name the file")
    path = Path(given).expanduser()
    if path.is_dir():
        return [Source(file) for file in _images_in(path)]
    # A file may have brackets in its name: only what does not exist is read as a pattern.
    if path.exists() or not has_magic(str(path)):
        return [Source(_existing(path))]
    files = [Path(name) for name in sorted(glob(str(path), recursive=True))]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not images:
        raise DataError(f"{path.absolute()}: no image matches (files with the suffixes {_suffixes()})")
    return [Source(file) for file in images]


def _images_in(folder: Path) -> list[Path]:
    images = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    below = _first_below(folder)
    remark = f"images below it, as in {below}, are not looked at: give '{folder}/**/*' for all"
    if not images:
        found = f"; {remark}" if below else ""
        raise DataError(f"{folder.absolute()}: no image in this folder (files with the suffixes {_suffixes()}){found}")
    if below:
        logger.warning("%s: %s", folder, remark)
    return images


def _first_below(folder: Path) -> str | None:
    """A folder with images below the one that is given; of a large tree without any not all is looked at."""
    for number, (parent, folders, names) in enumerate(os.walk(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]  # which patterns pass over, too
        if number and any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names):
            return parent
        if number == FOLDERS_LOOKED_AT:
            break
    return None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such image, folder or pattern")
    return path


def _pixels_of(image: Image.Image) -> Picture:
    """As `read_image` gives them of a file. A picture that was opened is decoded only here."""
    if not all(image.size):
        raise DataError(f"a PIL image of {image.width}x{image.height} pixels holds no pixel")
    try:
        return upright_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        name = getattr(image, "filename", "") or "a PIL image"
        raise DataError(f"{name}: the image can not be decoded: {error}") from None


def _checked(pixels: NDArray[np.generic]) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(
            f"an array of {pixels.dtype} {list(pixels.shape)}: expected uint8 RGB [height, width, 3] "
            "(or grey [height, width]); scale floats to 0..255 and put channels last"
        )
    if not pixels.size:
        raise DataError(f"an array of {list(pixels.shape)} holds no pixel")
    picture = pixels.astype(np.uint8, copy=False)
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
