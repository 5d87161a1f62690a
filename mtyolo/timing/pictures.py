"""What is looked at while time is taken."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtyolo.data.shapes import drawn_pictures
from mtyolo.prediction.predict import letterboxed
from mtyolo.prediction.sources import find_sources


def pictures(place: Path | None, count: int, size: int) -> Tensor:
    """[count, 3, size, size] uint8 RGB: those at a place, from the first again where they are fewer, or drawn ones.

    Raises DataError where there are none, or one can not be read.
    """
    read = drawn_pictures(count, size) if place is None else [one.read() for one in find_sources(place)[:count]]
    fitted = [letterboxed(picture, size)[0] for picture in islice(cycle(read), count)]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()
