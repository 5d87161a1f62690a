"""Validation: images through the model, detections in original pixels, judged task by task."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Protocol

import torch

from mtyolo.config.arguments import check_arguments
from mtyolo.data.loader import Dataset, make_loader
from mtyolo.data.records import ImageRecord, Split, names_differ, pictures_only
from mtyolo.device import find_device
from mtyolo.errors import ConfigError, DataError
from mtyolo.evaluation.keypoints import KeypointPrecision
from mtyolo.evaluation.masks import MOST_MASKS, MaskPrecision
from mtyolo.evaluation.metrics import Metrics
from mtyolo.evaluation.precision import BoxPrecision, Judge
from mtyolo.exported import ExportedModel
from mtyolo.features.finite import check_extracted
from mtyolo.geometry import fitting_side
from mtyolo.memory import kept_memory
from mtyolo.model import Model, forward
from mtyolo.modes import evaluating
from mtyolo.structures import Batch, Outputs, input_size
from mtyolo.tasks.instances import image_instances
from mtyolo.tasks.select import Selection, select

Progress = Callable[[int, int], None]
"""Called after each batch with the number of batches done, and of all."""


class Loader(Sized, Protocol):
    """What a DataLoader is, to the validation."""

    def __iter__(self) -> Iterator[Batch]: ...


@kept_memory()
def validate(
    model: Model | ExportedModel,
    split: Split,
    *,
    size: int | None = None,
    batch: int = 8,
    device: torch.device | str | None = None,
    confidence: float = 0.001,
    iou: float = 0.6,
    limit: int = 300,
    tasks: Sequence[str] | None = None,
    loader: Loader | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Average precision of each task on the images that are labelled for it, and seconds an image.

    The defaults of confidence, iou and limit are those of the official val, several classes a box. Masks are judged
    for an image's best 100 detections.
    size: square network input in pixels, rounded up to a multiple of the model's largest stride; by default the one
    that the model was trained at, 640 where it does not know. tasks: by default
    what the model predicts and the split is labelled for. loader: batches in place of pictures letterboxed to `size`,
    for example of stored features; their `indices` count the split's records, their `labelled` decides.
    device: the model is moved there; by default it stays. It keeps the modes in which it came.
    Raises DataError or ConfigError where model and split do not fit, ConfigError naming an argument that can not be
    meant.
    """
    size = model.usual_size if size is None else size
    check_arguments(size=size, batch=batch, confidence=confidence, iou=iou, limit=limit)
    place = None if device is None else find_device(device)
    judges = make_judges(model, split, tasks)
    size = fitting_side(size, model.largest_stride)
    if place is not None:
        model.to(place)
    if loader is None:
        loader = make_loader(
            Dataset(pictures_only(split), size, cache_bytes=0), batch, shuffle=False, workers=0, seed=0
        )
    clock = _Clock(next(model.parameters()).device)
    with evaluating(model):
        for done, data in enumerate(loader, 1):
            moved = data.to(clock.device)
            clock.lap("preprocess")
            outputs = forward(model, moved)
            clock.lap("forward")
            if moved.images is not None and moved.pyramid is None and isinstance(model, Model):
                names = [split.records[index].path for index in data.indices.tolist()]
                check_extracted(model, moved.images, outputs, names)
            kept = select(model.decode(outputs), confidence, iou, limit, multi_label=True)
            for number, index in enumerate(data.indices.tolist()):
                _judge_image(judges, split.records[index], model, outputs, data, number, kept[number])
            clock.lap("postprocess", images=len(data.indices))
            if progress is not None:
                progress(done, len(loader))
    return Metrics({task: judge.compute() for task, judge in judges.items()}, clock.seconds_per_image())


def make_judges(model: Model | ExportedModel, split: Split, tasks: Sequence[str] | None = None) -> dict[str, Judge]:
    """A judge for each task, after checking that model and split speak of the same classes, points and tasks."""
    if len(model.names) != len(split.names):
        raise ConfigError(
            f"split {split.name}: the data has {len(split.names)} classes, the model predicts {len(model.names)}; "
            "validate on the data that the model was trained for"
        )
    if difference := names_differ(split.names, model.names):
        raise ConfigError(
            f"split {split.name}: {difference}; validate on the data that the model was trained for, with the classes "
            "called as it knows them, in its order"
        )
    wanted = tuple(tasks) if tasks is not None else tuple(task for task in model.tasks if split.count(task))
    if not wanted:
        raise DataError(
            f"split {split.name}: no image is labelled for {', '.join(model.tasks)}; there is nothing to judge"
        )
    for task in wanted:
        if task not in model.tasks:
            raise ConfigError(f"the model has no branch {task!r}; it predicts {', '.join(model.tasks)}")
        if not split.count(task):
            raise DataError(f"split {split.name}: no image is labelled for {task}; leave it out, or add labels")
    return {task: _judge(task, model, split) for task in wanted}


def _judge(task: str, model: Model | ExportedModel, split: Split) -> Judge:
    if task == "detect":
        return BoxPrecision(split.names)
    if task == "segment":
        return MaskPrecision(split.names)
    if split.sigmas is None or model.keypoints != split.points:
        raise ConfigError(
            f"split {split.name}: labelled with {split.points} keypoints, the model predicts {model.keypoints}; "
            "set kpt_shape of the data and points of the model to the same number"
        )
    return KeypointPrecision(split.names, split.sigmas, split.keypoint_classes)


def _judge_image(
    judges: dict[str, Judge],
    record: ImageRecord,
    model: Model | ExportedModel,
    outputs: Outputs,
    batch: Batch,
    number: int,
    kept: Selection,
) -> None:
    """Tell the judges of one image of a batch. Its masks are encoded before those of the next image are made."""
    place = (input_size(batch.images, batch.pyramid), batch.letterboxes[number], model.keypoint)
    for task, judge in judges.items():
        if batch.targets.labelled[task][number]:
            chosen = _worth_judging(judge, kept)
            judge.add(image_instances(_only(task, outputs), number, chosen, *place), record)


def _worth_judging(judge: Judge, kept: Selection) -> Selection:
    """Of an image's detections those that count. Masks and points of the others would cost more than all the rest."""
    if isinstance(judge, MaskPrecision):
        return Selection(*(values[:MOST_MASKS] for values in kept))
    if isinstance(judge, KeypointPrecision):
        counts = judge.counts(kept.classes.cpu().numpy())
        return Selection(*(values[torch.from_numpy(counts).to(values.device)] for values in kept))
    return kept


def _only(task: str, outputs: Outputs) -> Outputs:
    return outputs._replace(
        segment=outputs.segment if task == "segment" else None,
        keypoint=outputs.keypoint if task == "keypoint" else None,
    )


class _Clock:
    """Adds up the seconds of each step; on an accelerator, after its work is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.images = 0
        self.last = time.perf_counter()

    def lap(self, step: str, images: int = 0) -> None:
        """What passed since the last lap goes to this step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.spent[step] += now - self.last
        self.last = now
        self.images += images

    def seconds_per_image(self) -> dict[str, float]:
        return {step: seconds / max(1, self.images) for step, seconds in self.spent.items()}
