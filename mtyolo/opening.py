"""Opening models for a data set: from whatever a person names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtyolo import assembly, checkpoint
from mtyolo.assembly import Registry
from mtyolo.config.arguments import check_paths
from mtyolo.config.model import ModelConfig
from mtyolo.config.reading import nearest
from mtyolo.data.records import names_differ
from mtyolo.data.sources import SPLITS, Data, read_data
from mtyolo.data.split import load_split
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.exported import ExportedModel, open_exported
from mtyolo.features.standin import refuse_images_alone, stand_in
from mtyolo.files import EXPORTED, WEIGHT_SUFFIXES
from mtyolo.graph.official import read_official
from mtyolo.inheritance import inherit
from mtyolo.model import Model

logger = logging.getLogger(__name__)


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
    check_paths(weights=weights, features=features)
    names, points = classes_and_points(data) if data is not None else (None, None)
    names = names or None  # pictures alone have none
    checkpoint.refuse_exported(weights or "")
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
    check_paths("path", path=path, weights=weights, features=features)
    path = Path(path)
    own: dict[str, Any] = {"extractors": extractors, "adapters": adapters, "trust": trust}
    if path.suffix not in WEIGHT_SUFFIXES:
        return build(path, data=data, weights=weights, features=features, **own)
    if weights is not None:
        raise ConfigError(f"{path} holds weights already; name a model file to join it with {weights}")
    if path.suffix in (checkpoint.SUFFIX, EXPORTED) or data is None:
        model = checkpoint.load(path, stand_in=None if features is None else stand_in(features), **own)
        if features is not None:
            refuse_images_alone(features, model)
        return model if data is None else _agreeing(model, path, data)
    official = read_official(path)
    config = {"detector": {"graph": official.graph.content, "weights": str(path.absolute())}}
    return build(config, data=data, features=features)


def open_to_find(
    path: str | Path, *, weights: str | Path | None = None, features: str | Path | None = None, **options: Any
) -> Model | ExportedModel:
    """`open_model`, or a network that `mtyolo.export` wrote: whatever finds something."""
    if Path(path).suffix != EXPORTED:
        return open_model(path, weights=weights, features=features, **options)
    for name, given in {"weights": weights, "features": features}.items():
        if given is not None:
            raise ConfigError(
                f"{path}: an exported network takes no {name}; leave them out, or name the weights that it was "
                "exported from"
            )
    return open_exported(path)


def not_exported(model: Model | ExportedModel) -> Model:
    """Before it meets a feature store. Raises ConfigError."""
    if isinstance(model, ExportedModel):
        raise ConfigError(
            f"{model.path}: an exported network takes no feature store; name the weights it was exported from"
        )
    return model


def open_to_judge(path: str | Path, data: Data, **options: Any) -> Model | ExportedModel:
    """The same, where what it predicts will be judged. Raises CheckpointError where it knows none of the classes, and
    warns where it knows some: fresh rows find nothing."""
    model = open_to_find(path, data=data, **options)
    if isinstance(model, ExportedModel):
        return model
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
