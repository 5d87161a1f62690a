"""The data of a run: its training and validation splits, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtyolo.config.data import DataConfig
from mtyolo.config.reading import nearest
from mtyolo.data.records import UNMIRRORED, Split, names_differ, without_keypoints
from mtyolo.data.sources import read_data
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError
from mtyolo.model import Model

Data = str | Path | DataConfig


def open_splits(data: Data, model: Model) -> tuple[Split, Split | None]:
    """Training split, and validation split where there is one. A folder of images alone is a split without labels.

    Raises ConfigError where classes or keypoints are not the model's.
    """
    source = read_data(data)
    splits = load_split(source, "train"), load_split(source, "val") if source.has("val") else None
    for split in splits:
        if split is not None:
            _check(split, model)
    return splits


def with_lessons(splits: tuple[Split, Split | None], model: Model) -> tuple[Split, Split | None]:
    """The same without keypoints where the model has none: what it does not learn must not narrow how images vary."""
    if model.keypoints is not None:
        return splits
    train, val = splits
    return without_keypoints(train), None if val is None else without_keypoints(val)


def say_problems(splits: tuple[Split, Split | None], say: Callable[[str], None]) -> None:
    """Which images and labels can not be used, and why; and what else is worth knowing of them."""
    for split in splits:
        if split is not None and (found := split.problems.summary()):
            say(f"{split.name}: {found}")
    if not splits[0].may_mirror:
        say(f"{splits[0].name}: note: {UNMIRRORED}")


def say_change(saved: Mapping[str, Any] | None, fingerprints: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Of a resumed run, whether its splits, and its teachers' files, are still those of its start. saved: its state.
    fingerprints: of now, by name."""
    before = (saved or {}).get("given", fingerprints)
    if before.get("train") != fingerprints.get("train"):
        say("the training images or labels are not those of the run's start: it goes on, but not to the same weights")
    if before.get("val") != fingerprints.get("val"):
        say(
            "the validation images or labels are not those of the run's start: metrics of before do not compare with "
            "those to come, and the best weights may be of either"
        )
    for name in before.keys() & fingerprints.keys() - {"train", "val"}:
        if before[name] != fingerprints[name]:
            say(f"teacher {name}: is not the file of the run's start: the run goes on, but not to the same weights")


def _check(split: Split, model: Model) -> None:
    if split.names and len(split.names) != len(model.names):
        missing = next((name for name in split.names.values() if name not in model.names.values()), None)
        hint = f"; {missing!r}: {nearest(missing, model.names.values())}" if missing else ""
        raise ConfigError(
            f"the data has {len(split.names)} classes, the model {len(model.names)}{hint}; "
            "build the model for this data: mtyolo.build(model, data=…)"
        )
    if difference := names_differ(split.names, model.names):
        raise ConfigError(
            f"split {split.name}: {difference}; call the classes of the data as the model does, in its order, or build "
            "the model for this data: mtyolo.build(model, data=…)"
        )
    if model.keypoints is not None and split.points not in (None, model.keypoints):
        raise ConfigError(f"the data has {split.points} keypoints, the model {model.keypoints}; build it for this data")
