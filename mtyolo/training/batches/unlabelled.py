"""Training on labels that are not there, which would go ahead and teach that every picture is background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtyolo.config.plan import StageConfig
from mtyolo.data.records import Split
from mtyolo.data.sources import read_data
from mtyolo.data.split import label_places
from mtyolo.errors import DataError
from mtyolo.model import Model
from mtyolo.training.batches.splits import Data
from mtyolo.training.stages import Stage


def refuse_unlabelled(stages: Sequence[Stage], model: Model, split: Split, data: Data) -> None:
    """Raises DataError for a stage that learns from labels, where the training split has no object, or no image that
    is labelled for what the stage learns; it says where labels were looked for, and what does without."""
    reading = [stage for stage in stages if _reads_labels(stage.config)]
    bare = next((stage for stage in reading if not _labelled(stage, model, split)), None)
    if bare is not None:
        tasks = ", ".join(bare.config.tasks or model.tasks)
        wrong = f"no image is labelled for {tasks}, from which stage {bare.name!r} learns"
    elif reading and split.tasks and split.shows_nothing:
        first, but = reading[0].name, " but of crowd regions" * any(len(record.labels) for record in split.records)
        wrong = (
            f"no label{but} in the whole split, and stage {first!r} learns from labels: all would pass for background"
        )
    else:
        return
    raise DataError(f"{_place(data, split)}: {split.name}: {wrong}; {_remedy(data, split, model)}")


def _reads_labels(stage: StageConfig) -> bool:
    return stage.objective == "tasks" and (stage.distill is None or stage.distill.hard > 0)


def _labelled(stage: Stage, model: Model, split: Split) -> bool:
    """True also where a teacher takes over what no label says, and for tasks that the model lacks: that is said
    elsewhere."""
    wanted = stage.config.tasks or model.tasks
    known = all(task in model.tasks for task in wanted)
    has_teacher = stage.config.distill is not None and stage.config.distill.does_without_labels
    return has_teacher or not known or any(task in split.taught for task in wanted)


def _place(data: Data, split: Split) -> str:
    """The data file with the split's line, or the folder of pictures."""
    source = read_data(data)
    return source.place(split.name) if source.document or not isinstance(data, str | Path) else str(data)


def _remedy(data: Data, split: Split, model: Model) -> str:
    """Where labels belong, and what does without."""
    places = ", ".join(map(str, label_places(read_data(data), split.name)))
    put = f"labels were looked for in {places}; put them there" if places else "name classes and labels in a data file"
    align = "" if model.adapters is None else "--plan align for the adapters, or "
    return f"{put}, or learn without any: {align}--plan distill-unlabelled from a teacher"


__all__ = ["refuse_unlabelled"]
