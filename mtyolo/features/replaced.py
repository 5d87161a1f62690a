"""What the replaced layers gave, in a store of its own inside that of the features: targets of alignment.

Its rows and views are those of the features: both are drawn from the images' names alone, and where another program
made the features, its rows are followed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import Extractor
from mtyolo.features.index import sha256_of
from mtyolo.features.manifest import MANIFEST, REPLACED, extract_command, read_manifest
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.residency import Residency
from mtyolo.features.shards import Row
from mtyolo.model import Model
from mtyolo.original_layers import alignment_teacher, replaced_weights
from mtyolo.structures import Pyramid

AGAIN = "run mtyolo extract again with --targets"


class ReplacedLayers(Extractor):
    """The layers that a model's features replace, as something to extract: images to stride -> [B, C, H/s, W/s].

    Raises ConfigError where the model has none, or names no official weights.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.teacher = alignment_teacher(model)
        self.levels = model.graph.entry_levels
        self.identity = identity(model)

    def forward(self, images: Tensor) -> Pyramid:
        return self.teacher(images)


def identity(model: Model) -> dict[str, str]:
    """Which layers of which network; the weights' hash where their file is still there.

    Raises ConfigError where the model has no such layers, or names no official weights.
    """
    weights = Path(replaced_weights(model))
    layers = ", ".join(str(number) for number in sorted(model.graph.entry))
    known = {"weights": sha256_of(weights)} if weights.is_file() else {}
    return {"name": "replaced layers", "layers": layers} | known


def target_options(features: ExtractOptions) -> ExtractOptions:
    """How targets are kept beside features that are kept so: the same views; int8 would blur what is learned."""
    return replace(features, dtype="fp16" if features.dtype == "int8" else features.dtype, source={})


def has_targets(store: FeatureStore, split: str) -> bool:
    """Does the store keep targets of this split beside its features?"""
    directory = store.directory / REPLACED
    return (directory / MANIFEST).is_file() and split in read_manifest(directory).splits


def open_targets(store: FeatureStore, model: Model, split: Split, residency: Residency | None = None) -> FeatureStore:
    """The targets that belong to a store of features. residency: by default the store's.

    Raises StoreError where there are none, or others; ConfigError where the model has nothing to align to.
    """
    wanted, directory = identity(model), store.directory / REPLACED
    if not has_targets(store, split.name):
        raise StoreError(
            f"{store.directory}: has no outputs of the replaced layers to align to for {split.name}; with the model "
            f"and data of its features, run {extract_command(store.directory, store.manifest.splits, targets=True)}"
        )
    targets = FeatureStore.open(directory, residency or store.residency, store.device)
    targets.check_made_by(wanted, model.graph.entry_levels, store.manifest.size)
    mine, theirs = store.index(split.name), targets.index(split.name)
    alike = len(mine.rows) == len(theirs.rows) and all(map(same_picture, mine.rows, theirs.rows))
    if not alike or store.manifest.views != targets.manifest.views:
        raise StoreError(f"{directory}: was made from other images or views than the features beside it; {AGAIN}")
    return targets


def same_picture(one: Row, other: Row) -> bool:
    """Another program may know no hash, and call an image by a shorter end of its path."""
    shorter, longer = sorted((one.name, other.name), key=len)
    content = one.sha256 == other.sha256 or None in (one.sha256, other.sha256)
    shape = (one.height, one.width, one.views) == (other.height, other.width, other.views)
    return content and shape and f"/{longer}".endswith(f"/{shorter}")


def open_given(directory: Path, model: Model, size: int | None = None) -> FeatureStore:
    """A store that another program wrote for a model that takes features, to put targets beside. size: by default its.

    Raises StoreError where there is none, or it is not this model's, or not of plain views.
    """
    if not (directory / MANIFEST).is_file():
        raise StoreError(
            f"{directory}: no feature store (no {MANIFEST}), and this model's features are made elsewhere; write them "
            "there first, see docs/features.md"
        )
    store, extractor = FeatureStore.open(directory, "stream"), cast(Extractor, model.extractor)
    store.check_made_by(extractor.identity, extractor.levels, size or store.manifest.size)
    if store.manifest.views > 1:
        raise StoreError(
            f"{directory}: has {store.manifest.views} views of an image, and only plain ones can be made again for "
            "--targets; write a store with views: 1"
        )
    return store


def in_rows_of(store: FeatureStore, split: Split) -> Split:
    """The same images in the order of a store's rows. Raises StoreError where rows and images are not the same."""
    rows, numbers = store.index(split.name).rows, store.index(split.name).match(split.records)
    often, times = Counter(numbers).most_common(1)[0]
    if times > 1:
        raise StoreError(
            f"{store.directory}: {times} images of {split.name} are called {rows[often].name}; give the names in the "
            "store as many parent folders as tell images apart"
        )
    records = dict(zip(numbers, split.records, strict=True))
    strange = [row.name for number, row in enumerate(rows) if number not in records]
    if strange:
        raise StoreError(
            f"{store.directory}: {len(strange)} of {len(rows)} images of {split.name} are not in the data, first "
            f"{strange[0]}; --targets needs the data that the features were made of"
        )
    return replace(split, records=[records[number] for number in range(len(rows))])
