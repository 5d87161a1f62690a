"""Opening models for a data set: what the command line and `import mtyolo` share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from mtyolo import assembly, checkpoint
from mtyolo.assembly import Registry
from mtyolo.config.arguments import check_counts
from mtyolo.config.model import ModelConfig
from mtyolo.config.plan import PlanConfig, read_plan
from mtyolo.config.reading import nearest
from mtyolo.config.training import TrainConfig, read_config
from mtyolo.data.records import Split, names_differ
from mtyolo.data.sources import SPLITS, Data, read_data, with_checked_content
from mtyolo.data.split import load_split
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.evaluation import validate as evaluation
from mtyolo.evaluation.metrics import Metrics
from mtyolo.evaluation.pictures import comparison
from mtyolo.features.reader import FeatureStore
from mtyolo.features.standin import stand_in
from mtyolo.graph.official import read_official
from mtyolo.inheritance import inherit
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.judging import Judge
from mtyolo.training.run import Run
from mtyolo.training.stored import refuse_images_alone, validation_batches
from mtyolo.training.train import train as run_training

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")


def build(
    config: str | Path | Mapping[str, Any] | ModelConfig,
    *,
    data: Data | None = None,
    weights: str | Path | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Model:
    """Assemble a model from YAML, for the classes and keypoints of a data set.

    It is in evaluation mode, with or without weights, as `load` gives it; a loop of your own calls `model.train()`.

    config: a model file, a plain YOLOv5 layer list, the name of one that ships with mtyolo, or its content.
    data: a data file, or its content. weights: an official checkpoint in place of the one that the model file names; or
    weights that mtyolo wrote, of the same extractor, adapters and graph: branches that they do not have stay fresh.
    features: a store that stands in for the extractor, which is then not loaded.
    extractors, adapters: your own classes by name. trust: also import `package.module:Class` named in the file.
    Raises ConfigError, DataError, StoreError or CheckpointError naming the place of what is wrong.
    """
    names, points = classes_and_points(data) if data is not None else (None, None)
    names = names or None  # pictures alone have none
    earlier = weights is not None and Path(weights).suffix == ".safetensors"
    model = assembly.build(
        config,
        weights=None if earlier else weights,
        names=names,
        points=points,
        extractors=extractors,
        adapters=adapters,
        stand_in=None if features is None else stand_in(features),
        trust=trust,
    )
    if features is not None:
        refuse_images_alone(features, model)
    if earlier and weights is not None:
        inherit(weights, model)
    return model


def open_model(
    path: str | Path,
    *,
    data: Data | None = None,
    weights: str | Path | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Model:
    """A model from whatever a person names: a YAML file, an official checkpoint, or weights that mtyolo wrote.

    features: a store that stands in for the extractor, which is then not loaded. extractors, adapters, trust: as for
    `build`.
    """
    path = Path(path)
    own: dict[str, Any] = {"extractors": extractors, "adapters": adapters, "trust": trust}
    if path.suffix not in WEIGHT_SUFFIXES:
        return build(path, data=data, weights=weights, features=features, **own)
    if weights is not None:
        raise ConfigError(f"{path} holds weights already; name a model file to join it with {weights}")
    if path.suffix == ".safetensors" or data is None:
        model = checkpoint.load(path, stand_in=None if features is None else stand_in(features), **own)
        if features is not None:
            refuse_images_alone(features, model)
        return model if data is None else _agreeing(model, path, data)
    official = read_official(path)
    config = {"detector": {"graph": official.graph.content, "weights": str(path.absolute())}}
    return build(config, data=data, features=features)


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


def validate(
    model: Model | str | Path,
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
    opened = model if isinstance(model, Model) else open_to_judge(model, data, features=features, **own)
    images = load_split(data, split)
    if features is not None:
        options["loader"] = stored_batches(opened, images, features, options.get("batch", 8))
    return evaluation.validate(opened, images, size=size, **options)


def open_to_judge(path: str | Path, data: Data, **options: Any) -> Model:
    """`open_model`, where what it predicts will be judged. Raises CheckpointError where it knows none of the classes,
    and warns where it knows some: fresh rows find nothing."""
    model = open_model(path, data=data, **options)
    fresh = model.fresh_classes
    if fresh:
        own = Path(path).suffix == checkpoint.SUFFIX  # which knows of itself what it was not taught
        weights = options.get("weights") or (path if own else model.config.detector.weights or path)
        found = f"{weights}: does not know {len(fresh)} of {len(model.names)} classes, first {fresh[0]!r}"
        if len(fresh) == len(model.names):
            raise CheckpointError(
                f"{found}; train it on this data first, or call the classes in the data as the weights do"
            )
        logger.warning("%s; of these it finds nothing", found)
    return model


def stored_batches(model: Model, split: Split, directory: str | Path, batch: int) -> DataLoader[Batch]:
    """A split's features from a store, to validate with. Raises StoreError where they are not this model's, ConfigError
    for a batch of nothing."""
    check_counts(batch=batch)
    store = FeatureStore.open(directory)
    store.check(model, split, store.manifest.size)
    return validation_batches(store, split, batch)


def classes_and_points(data: Data) -> tuple[dict[int, str], int | None]:
    """Class names and the number of keypoints, from the data file or, where it does not say, from its labels."""
    source = read_data(data)
    names = source.names()
    if names == {}:
        return names, None
    shape = source.config.kpt_shape
    if names is not None and (shape is not None or source.config.annotations):
        return names, shape[0] if shape else source.points()
    present = next((name for name in SPLITS if source.has(name)), "train")
    split = load_split(source, present)
    return split.names, split.points


def _agreeing(model: Model, path: Path, data: Data) -> Model:
    names, points = classes_and_points(data)
    difference = names_differ(names, model.names)
    if names and (difference or len(names) != len(model.names)):
        ours, theirs = set(names.values()), set(model.names.values())
        missing = sorted(ours - theirs)
        hint = (
            f"{missing[0]!r} is unknown to it; {nearest(missing[0], theirs)}"
            if missing
            else difference or "it knows more"
        )
        raise CheckpointError(
            f"{path}: has {len(theirs)} classes, the data set {len(ours)}: {hint}; "
            f"to train on these, name its model file (.yaml) with --weights {path}, in Python mtyolo.build(…, data=…, "
            "weights=…); else give data with the classes that it knows"
        )
    if model.keypoints is not None and points is not None and points != model.keypoints:
        raise CheckpointError(f"{path}: has {model.keypoints} keypoints, the data set {points}")
    return model
