"""Validation pictures: truth beside prediction."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mtyolo.data.loader import Dataset, make_loader
from mtyolo.data.records import Split
from mtyolo.drawing import draw_comparison, truths_of
from mtyolo.model import Model, evaluating, forward
from mtyolo.structures import Batch


def comparison(
    model: Model, split: Split, *, size: int = 640, count: int = 6, confidence: float = 0.25, iou: float = 0.45
) -> NDArray[np.uint8]:
    """RGB picture of `count` images spread over the split, as the network sees them: labels, and what is found."""
    size = math.ceil(size / model.largest_stride) * model.largest_stride
    chosen = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int))
    few = replace(split, records=[split.records[index] for index in chosen])
    loader = make_loader(Dataset(few, size, cache_bytes=0), len(few), shuffle=False, workers=0, seed=0)
    batch: Batch = next(iter(loader))
    with evaluating(model):
        outputs = forward(model, batch.to(next(model.parameters()).device))
        found = model.detections(outputs, confidence=confidence, iou=iou)
    assert batch.images is not None
    images = [image.permute(1, 2, 0).numpy() for image in batch.images]
    return draw_comparison(images, truths_of(batch), found, split.names)
