"""Alignment on pictures that nothing trains on: few photos are soon known by heart, and the training error hides it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split, pictures_only
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.features.replaced import has_targets, open_targets
from mtyolo.model import Model
from mtyolo.modes import as_before
from mtyolo.structures import Batch
from mtyolo.training.objectives.alignment import ALIGN, AlignedTasksObjective, AlignObjective
from mtyolo.training.objectives.tasks import Objective
from mtyolo.training.records.rows import Means, Row

MOST_PICTURES = 512
"""Of a validation split, for this: more would say the same, and take longer than a short epoch."""
ERROR = f"val/{ALIGN}"


def held_out_errors(
    objective: Objective, model: Model, split: Split | None, store: FeatureStore | None, config: TrainConfig
) -> Row:
    """`val/align` and its parts, as in training; empty where a stage does not align, or there is nothing to compare.

    split: for validation; needs no labels. store: has its features; without targets beside them nothing is compared.
    """
    align = objective.align if isinstance(objective, AlignedTasksObjective) else objective
    if not isinstance(align, AlignObjective) or split is None or not may_be_held_out(split, store):
        return {}
    pictures = pictures_only(replace(split, records=split.records[:MOST_PICTURES]))
    batches = _images(pictures, config) if store is None else _stored(store, model, pictures, config)
    return dict(_means(align, model, batches))


def may_be_held_out(split: Split | None, store: FeatureStore | None) -> bool:
    """Are there validation pictures, and what to compare them with?"""
    return split is not None and (store is None or has_targets(store, split.name))


def as_fitness(row: Row) -> Row:
    """The negative error, where a run that only aligns has no labels to be judged by."""
    error = row.get(ERROR)
    return {"fitness": -error} if isinstance(error, float) and row.get("fitness") is None else {}


def is_judged_by_error(row: Row) -> bool:
    """Is this row's fitness of `as_fitness`?"""
    error = row.get(ERROR)
    return isinstance(error, float) and row.get("fitness") == -error


@torch.no_grad()
def _means(align: AlignObjective, model: Model, batches: Iterable[Batch]) -> dict[str, float]:
    means = Means()
    with as_before(model):
        model.eval()
        for batch in batches:
            losses = align(model, batch.to(model.anchors.device))
            means.add(losses.tasks | losses.components, prefix="val/")
    return means.means()


def _images(split: Split, config: TrainConfig) -> DataLoader[Batch]:
    dataset = Dataset(split, config.imgsz, None)
    return make_loader(dataset, config.batch, shuffle=False, workers=config.workers, seed=config.seed)


def _stored(store: FeatureStore, model: Model, split: Split, config: TrainConfig) -> DataLoader[Batch]:
    targets = open_targets(store, model, split, "stream")
    return make_store_loader(
        store, split, config.batch, augment=None, shuffle=False, seed=0, targets=targets, finite=True
    )
