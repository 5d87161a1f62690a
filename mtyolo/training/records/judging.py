"""Validation during training, through functions that are given from above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model
from mtyolo.training.batches.stored import validation_batches
from mtyolo.training.records.rows import Row


class Verdict(Protocol):
    """What validation gives: `mtyolo.evaluation.metrics.Metrics`."""

    @property
    def fitness(self) -> float: ...

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Judge:
    """How models are validated; training itself does not know.

    validate(model, split, size=, batch=) gives a Verdict; with loader=, from these batches.
    compare(model, split, size=): an RGB picture with truth beside prediction; with features=, a store's folder, found
    in its features.
    """

    validate: Callable[..., Verdict]
    compare: Callable[..., NDArray[np.uint8]] | None = None


def judged(
    judge: Judge | None, model: Model, split: Split | None, store: FeatureStore | None, config: TrainConfig
) -> Row:
    """Metrics of a model as columns of a row; none without a judge, a validation split, or labels in it.

    store: has the split's features; None to take its images.
    """
    if judge is None or split is None or not any(split.count(task) for task in model.tasks):
        return {}
    stored = {} if store is None else {"loader": validation_batches(store, split, config.batch)}
    values = judge.validate(model, split, size=config.imgsz, batch=config.batch, **stored).as_dict()
    return {name: value for name, value in values.items() if name == "fitness" or "/AP" in name or "/OKS" in name}
