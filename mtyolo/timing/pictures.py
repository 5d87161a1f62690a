"""What is looked at while time is taken."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from mtyolo.data.shapes import drawn_pictures
from mtyolo.prediction.predict import letterboxed
from mtyolo.prediction.sources import Source


def pictures(sources: Sequence[Source], count: int, size: int) -> Tensor:
    """[count, 3, size, size] uint8 RGB: from the first again where there are fewer, and drawn where there is none.

    Raises DataError where one can not be read.
    """
    read = [source.read() for source in sources[:count]] or drawn_pictures(count, size)
    fitted = [letterboxed(picture, size)[0] for picture in islice(cycle(read), count)]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()
