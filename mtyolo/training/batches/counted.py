"""Which training images a stage draws from: those that are labelled for what it learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mtyolo.data.records import ImageRecord, Split
from mtyolo.model import Model
from mtyolo.training.stages import Stage, aligns


def counted_images(stage: Stage, model: Model, split: Split) -> Split:
    """The split without images that teach nothing here: with few labels of a rare task, nearly all of a batch.

    What is left is labelled for the stage's tasks alone, as every batch holds an image for each task that it knows of.
    Stages with a teacher or alignment learn from pictures without labels, too, and draw from all.
    """
    if stage.config.distill is not None or aligns(stage, model):
        return split
    wanted = frozenset[str](stage.config.tasks or model.tasks)
    return replace(split, records=[_only(record, wanted) for record in split.records if _shows(record, wanted)])


def left_out(stage: Stage, model: Model, split: Split) -> list[str]:
    """For people: how many of the images a stage uses; nothing where it uses all."""
    used, wanted = len(counted_images(stage, model, split)), stage.config.tasks or model.tasks
    if used == len(split):
        return []
    return [f"stage {stage.name} draws from the {used} of {len(split)} images that are labelled for {_or(wanted)}"]


def lengths(stages: Iterable[Stage], model: Model, split: Split) -> list[int]:
    """Of each epoch of a run, in images."""
    images = [(stage.config.views * len(counted_images(stage, model, split)), stage.epochs) for stage in stages]
    return [length for length, epochs in images for _ in range(epochs)]


def _shows(record: ImageRecord, wanted: frozenset[str]) -> bool:
    return not wanted.isdisjoint(record.labels.labelled)


def _only(record: ImageRecord, wanted: frozenset[str]) -> ImageRecord:
    if record.labels.labelled <= wanted:
        return record
    return replace(record, labels=replace(record.labels, labelled=record.labels.labelled & wanted))


def _or(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


__all__ = ["counted_images", "left_out", "lengths"]
