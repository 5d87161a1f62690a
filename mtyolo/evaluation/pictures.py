"""Validation pictures: truth beside prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mtyolo.data.loader import Dataset, make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import some_of
from mtyolo.drawing import draw_comparison, truths_of
from mtyolo.exported import ExportedModel
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.geometry import fitting_side
from mtyolo.model import Model, forward
from mtyolo.modes import evaluating
from mtyolo.opening import not_exported
from mtyolo.structures import Batch


def comparison(
    model: Model | ExportedModel,
    split: Split,
    *,
    size: int | None = None,
    count: int = 6,
    confidence: float = 0.25,
    iou: float = 0.45,
    features: str | Path | None = None,
) -> NDArray[np.uint8]:
    """RGB picture of `count` images spread over the split, as the network sees them: labels, and what is found.

    size: by default the one that the model was trained at. features: a store to find in, in place of the images, which
    are then only drawn on; `size` is the store's.
    """
    size = fitting_side(size or model.usual_size, model.largest_stride)
    few = some_of(split, count)
    batch: Batch = next(iter(_pictures(few, size) if features is None else _stored(model, few, features)))
    if batch.draw is not None:
        batch.images = batch.draw(range(len(few)))
    with evaluating(model):
        outputs = forward(model, batch.to(next(model.parameters()).device))
        found = model.detections(outputs, confidence=confidence, iou=iou)
    assert batch.images is not None
    images = [image.permute(1, 2, 0).numpy() for image in batch.images]
    return draw_comparison(images, truths_of(batch), found, split.names, split.skeleton)


def _pictures(split: Split, size: int) -> DataLoader[Batch]:
    return make_loader(Dataset(split, size, cache_bytes=0), len(split), shuffle=False, workers=0, seed=0)


def _stored(model: Model | ExportedModel, split: Split, directory: str | Path) -> DataLoader[Batch]:
    """Features, with the pictures beside them."""
    store = FeatureStore.open(directory, "stream")
    store.check(not_exported(model), split, store.manifest.size)
    return make_store_loader(store, split, len(split), augment=None, shuffle=False, seed=0, pixels=True, finite=True)
