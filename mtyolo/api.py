"""Training and judging, with models opened for the data: what the command line and `import mtyolo` share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from mtyolo.assembly import Registry
from mtyolo.config.arguments import check_counts, check_paths
from mtyolo.config.plan import PlanConfig, read_plan
from mtyolo.config.training import TrainConfig, read_config
from mtyolo.data.records import Split
from mtyolo.data.sources import Data, with_checked_content
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError
from mtyolo.evaluation import validate as evaluation
from mtyolo.evaluation.metrics import Metrics
from mtyolo.evaluation.pictures import comparison
from mtyolo.exported import ExportedModel
from mtyolo.exporting.export import Export
from mtyolo.exporting.export import export as write_onnx
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model
from mtyolo.opening import build, not_exported, open_model, open_to_judge
from mtyolo.structures import Batch
from mtyolo.training.batches.stored import validation_batches
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.run import Run
from mtyolo.training.train import train as run_training

logger = logging.getLogger(__name__)


def train(
    model: Model | str | Path | Mapping[str, Any] | None = None,
    data: Data | None = None,
    *,
    plan: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | PlanConfig | None = None,
    config: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    features: str | Path | None = None,
    progress: bool = True,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Run:
    """Train a model by a plan, validating each epoch; `mtyolo.training.train.train` explains the arguments.

    model: or a path, or the content of a model file, opened for the data. With `resume`, the run's folder knows model
    and data; plan, config and out have no effect then. data: a data file, or its content. plan: also a list of stages.
    config: also a dictionary such as {"epochs": 20}, or a file of these.
    extractors, adapters: your own classes by name, of a model that is opened, of a resumed run, and of
    teachers. trust: import `package.module:Class` that these name.
    """
    own: dict[str, Any] = {"extractors": extractors, "adapters": adapters, "trust": trust}
    check_paths(out=out, resume=resume, features=features)
    if resume is not None:
        for name, value in {"plan": plan, "config": config, "out": out}.items():
            if value is not None:
                logger.warning("%s= has no effect beside resume=: the run goes on as it began", name)
    data = None if data is None else with_checked_content(data)
    plan = None if plan is None else read_plan(plan)
    config = None if config is None else read_config(config)
    if model is not None and not isinstance(model, Model):
        set_seed((config or TrainConfig()).seed)  # also of fresh adapters and branches
        model = _opened(model, data=data, features=features, **own)
    return run_training(
        model,
        data,
        plan=plan,
        config=config,
        out=out,
        resume=resume,
        features=features,
        judge=Judge(evaluation.validate, comparison),
        progress=progress,
        **own,
    )


def _opened(model: object, **options: Any) -> Model:
    if isinstance(model, str | Path):
        return open_model(model, **options)
    if isinstance(model, Mapping):
        return build(model, **options)
    raise ConfigError(f"model: expected a model, a file, or the content of one, got {type(model).__name__}")


def export(
    model: Model | str | Path,
    path: str | Path,
    *,
    size: int | None = None,
    batch: int | None = None,
    inputs: str | None = None,
    opset: int | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Export:
    """Write a model to an ONNX file; `mtyolo.exporting.export.export` explains the arguments.

    model: or a path, which is opened. For such: features: a store that stands in for its extractor, whose features then
    go in; extractors, adapters: your own classes by name; trust: import `package.module:Class` that its file names.
    """
    if not isinstance(model, Model):
        check_paths("model", model=model)
        model = open_model(model, features=features, extractors=extractors, adapters=adapters, trust=trust)
    return write_onnx(model, path, size=size, batch=batch, inputs=inputs, opset=opset)


def validate(
    model: Model | ExportedModel | str | Path,
    data: Data,
    *,
    split: str = "val",
    size: int | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
    **options: Any,
) -> Metrics:
    """Judge a model on a split of a data file; further options are those of `mtyolo.evaluation.validate.validate`.

    size: by default the one that the model was trained at. features: a store to take features from in place of images;
    then `size` is the store's. extractors, adapters: your own classes by name, for a model that is opened. trust:
    import `package.module:Class` that its file names.
    """
    own: dict[str, Any] = {"extractors": extractors, "adapters": adapters, "trust": trust}
    if not isinstance(model, Model | ExportedModel):
        check_paths("model", model=model)
    check_paths(features=features)
    opened = open_to_judge(model, data, features=features, **own) if isinstance(model, str | Path) else model
    images = load_split(data, split)
    if features is not None:
        options["loader"] = stored_batches(opened, images, features, options.get("batch", 8))
    return evaluation.validate(opened, images, size=size, **options)


def stored_batches(model: Model | ExportedModel, split: Split, directory: str | Path, batch: int) -> DataLoader[Batch]:
    """A split's features from a store, to validate with. Raises StoreError where they are not this model's, ConfigError
    for a batch of nothing."""
    check_counts(batch=batch)
    takes_features, store = not_exported(model), FeatureStore.open(directory)
    store.check(takes_features, split, store.manifest.size)
    return validation_batches(store, split, batch)


__all__ = ["build", "export", "open_model", "open_to_judge", "stored_batches", "train", "validate"]
