"""Training from a feature store: what it can not do is refused before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.records import Split, pictures_only
from mtyolo.errors import ConfigError
from mtyolo.extractors import GivenFeatures
from mtyolo.features.augment import feature_augment
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.features.replaced import has_targets, open_targets
from mtyolo.features.standin import refuse_images_alone
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.stages import Stage

EARLIEST = "{4: 8}"
"""Of YOLOv5: layer 4 alone, behind which all the others lie."""


def open_store(
    directory: Path | str,
    model: Model,
    splits: Sequence[Split | None],
    config: TrainConfig,
    stages: Sequence[Stage],
    device: torch.device,
) -> FeatureStore:
    """A store that belongs to model, size and data, for stages that train on features.

    splits: for training, and for validation or None. Raises ConfigError or StoreError saying what does not fit.
    """
    refuse_images_alone(directory, model)
    _refuse_where_images_are_needed(directory, model)
    for stage in stages:
        _refuse_images(stage, config)
    store = FeatureStore.open(directory, device=device)
    for split in splits:
        if split is not None:
            store.check(model, split, config.imgsz)
    if isinstance(model.extractor, GivenFeatures) and model.extractor.may_be_any:
        model.extractor.made_by(store.manifest.extractor)
    compares = model.config.adapters.match_statistics or any(stage.config.aligns for stage in stages)
    for split in splits if compares else ():
        if split is not None and (split is splits[0] or has_targets(store, split.name)):
            open_targets(store, model, split)
    return store


def _refuse_where_images_are_needed(directory: Path | str, model: Model) -> None:
    if model.graph.needs_images:
        entry = ", ".join(map(str, sorted(model.graph.entry)))
        raise ConfigError(
            f"{directory}: layers before the entry still need the images, and a feature store has none: features enter "
            f"at layer {entry}; let them enter at every way from the images, as {EARLIEST} does, under detector.entry "
            "of the model file, or leave --features out"
        )


def _refuse_images(stage: Stage, config: TrainConfig) -> None:
    place = f"plan: stage {stage.name!r}"
    named = () if stage.config.train == "all" else stage.config.train
    if "extractor" in named and "extractor" not in stage.config.freeze:
        raise ConfigError(
            f"{place}: trains the extractor, but its features are stored and would not change; "
            "take extractor out of train, or train without --features"
        )
    stage_augment(stage, config)


def stage_augment(stage: Stage, config: TrainConfig) -> AugmentConfig | None:
    """What a stage asks for, as far as features can do it; None for none. Raises ConfigError for what needs pixels."""
    own = stage.config.augment
    augment = own if isinstance(own, AugmentConfig) else config.augment if own else None
    imitates = stage.config.aligns or stage.config.distill is not None
    return None if augment is None else feature_augment(augment, aligns=imitates)


def training_batches(
    store: FeatureStore, model: Model, stage: Stage, split: Split, config: TrainConfig
) -> DataLoader[Batch]:
    augment = stage_augment(stage, config)
    targets = open_targets(store, model, split) if stage.config.aligns else None
    return make_store_loader(
        store,
        split,
        config.batch,
        augment=augment,
        shuffle=True,
        seed=config.seed,
        targets=targets,
        pixels=stage.config.distill is not None,
    )


def matching_batches(store: FeatureStore, model: Model, split: Split, config: TrainConfig) -> DataLoader[Batch]:
    """Plain views with what the replaced layers gave, to match the adapters' statistics to."""
    targets = open_targets(store, model, split)
    return make_store_loader(store, split, config.batch, augment=None, shuffle=True, seed=config.seed, targets=targets)


def validation_batches(store: FeatureStore, split: Split, batch: int) -> DataLoader[Batch]:
    return make_store_loader(store, pictures_only(split), batch, augment=None, shuffle=False, seed=0, finite=True)


def takes_images(model: Model) -> bool:
    """Can this model look at images, or does a store stand in for its extractor?"""
    return not isinstance(model.extractor, GivenFeatures)


__all__ = [
    "matching_batches",
    "open_store",
    "stage_augment",
    "takes_images",
    "training_batches",
    "validation_batches",
]
