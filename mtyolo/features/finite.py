"""Features that are no numbers: a model finds nothing in them, and would not say why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtyolo.errors import DataError, StoreError
from mtyolo.extractors.base import features_of
from mtyolo.features.manifest import repair_of
from mtyolo.model import Model, pixels
from mtyolo.structures import Outputs, Pyramid


def wrong_images(pyramid: Pyramid) -> list[int]:
    """Numbers in the batch of those with a value that is not finite at some level."""
    if not pyramid:
        return []
    finite = [level.flatten(1).isfinite().all(1).cpu() for level in pyramid.values()]
    return (~torch.stack(finite).all(0)).nonzero().flatten().tolist()  # type: ignore[no-any-return]


def said_of_features(place: object, pyramid: Pyramid, names: Sequence[object]) -> str:
    """What is wrong with a batch's features, as the beginning of a sentence; nothing where they are finite.

    place: where they are from. names: of the batch's images.
    """
    wrong = wrong_images(pyramid)
    if not wrong:
        return ""
    return f"{place}: the features of {len(wrong)} of {len(names)} images are not finite, first of {names[wrong[0]]}"


def check_stored(directory: Path, pyramid: Pyramid | None, names: Sequence[object]) -> None:
    """Raises StoreError where features that were read from a store are not finite."""
    if said := said_of_features(directory, pyramid or {}, names):
        raise StoreError(f"{said}; {repair_of(directory)}")


def check_extracted(model: Model, images: Tensor, outputs: Outputs, names: Sequence[object]) -> None:
    """Raises DataError where the model's extractor gave features that are not finite.

    images: what went in, uint8 [B, 3, H, W]. Only for outputs that are not finite the extractor is asked again, as
    these can have other reasons.
    """
    if model.extractor is None or all(bool(level.isfinite().all()) for level in outputs.detect):
        return
    config = model.config.extractor
    name = config.name if config is not None else type(model.extractor).__name__
    if said := said_of_features(f"extractor {name}", features_of(model.extractor, pixels(images)), names):
        raise DataError(f"{said}; mend the extractor, or give it other weights")
