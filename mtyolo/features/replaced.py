"""What the replaced layers gave, in a store of its own inside that of the features: targets of alignment.

Its rows and views are those of the features, as both are drawn from the images' names alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import Extractor
from mtyolo.features.index import SplitIndex, sha256_of
from mtyolo.features.manifest import MANIFEST, REPLACED, read_manifest
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.shards import View
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


def open_targets(store: FeatureStore, model: Model, split: Split) -> FeatureStore:
    """The targets that belong to a store of features.

    Raises StoreError where there are none, or others; ConfigError where the model has nothing to align to.
    """
    wanted, directory = identity(model), store.directory / REPLACED
    if not (directory / MANIFEST).is_file() or split.name not in read_manifest(directory).splits:
        raise StoreError(
            f"{store.directory}: has no outputs of the replaced layers to align to for {split.name}; {AGAIN}"
        )
    targets = FeatureStore.open(directory, store.residency, store.device)
    targets.check_made_by(wanted, model.graph.entry_levels, store.manifest.size)
    mine, theirs = store.index(split.name), targets.index(split.name)
    same = store.manifest.views == targets.manifest.views and pictures(mine) == pictures(theirs)
    if not same:
        raise StoreError(f"{directory}: was made from other images or views than the features beside it; {AGAIN}")
    return targets


def pictures(index: SplitIndex) -> list[tuple[str, str | None, list[View]]]:
    """What was seen, row by row."""
    return [(row.name, row.sha256, row.views) for row in index.rows]


def read_targets(targets: FeatureStore, split: str, views: list[tuple[int, int]], mirrored: list[bool]) -> Pyramid:
    """Whole views, as (row, view), mirrored where the features were: stride -> [B, C, H, W]."""
    return targets.read(split, [[targets.whole(row, view)] for row, view in views], mirrored)
