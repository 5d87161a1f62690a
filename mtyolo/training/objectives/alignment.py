"""Objective `align`: adapters learn, without labels, to give what the layers they replace would have given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mtyolo.adapters.statistics import match_statistics, moments
from mtyolo.config.reading import nearest
from mtyolo.data.records import Split
from mtyolo.distill.compared import relative_error
from mtyolo.distill.row_terms import BOX, CLASSES, believed, bernoulli_divergence
from mtyolo.errors import ConfigError
from mtyolo.extractors.base import features_of
from mtyolo.model import Model, pixels
from mtyolo.original_layers import alignment_teacher
from mtyolo.structures import Batch, Pyramid, input_size
from mtyolo.training.objectives.tasks import Losses, TasksObjective, shared_maps
from mtyolo.training.processes import images_each

ALIGN = "align"
"""The name that a balancer and the results know."""
OPTIONS = ("fused", "maps")


class AlignObjective:
    """Normalised squared error to the replaced layers, and optionally to what the frozen graph makes of them.

    teacher: images [B, 3, H, W] -> stride -> output of the replaced layer in the original network; None where batches
    bring these outputs along, from a feature store.
    fused, maps: weights of the errors at the branches' inputs and of the raw detect maps, 0 for none. What the model's
    own frozen graph gives on the teacher's outputs is the target there: with official weights, the original network's.
    """

    def __init__(self, teacher: nn.Module | None, *, fused: float = 0.0, maps: float = 0.0) -> None:
        self.teacher = teacher
        self.fused = fused
        self.maps = maps

    def __call__(self, model: Model, batch: Batch) -> Losses:
        assert model.adapters is not None
        images, pyramid, wanted = seen_by_both(model, self.teacher, batch)
        adapted = model.adapters(pyramid, input_size(images, pyramid))
        through = self._through_graph(model, images, adapted) if self.fused or self.maps else None
        total, components = self.judge(model, images, adapted, wanted, through)
        return Losses({ALIGN: total}, components, sums_images=False)

    def judge(
        self, model: Model, images: Tensor | None, adapted: Pyramid, wanted: Pyramid, through: Through | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The error and its parts. through: what the graph and the detect branch made of `adapted`."""
        errors = level_errors(adapted, wanted)
        components = {f"align.{stride}": error for stride, error in errors.items()}
        total = torch.stack(list(errors.values())).mean()
        if through is None or not (self.fused or self.maps):
            return total, components
        with torch.no_grad():
            fused_wanted, maps_wanted = self._through_graph(model, images, wanted)
        fused = level_errors(through.fused, fused_wanted)
        components |= {f"align.fused{stride}": error for stride, error in fused.items()}
        total = total + self.fused * torch.stack(list(fused.values())).mean()
        if self.maps:
            maps = map_errors(through.maps, maps_wanted)
            components |= maps
            total = total + self.maps * torch.stack(list(maps.values())).sum()
        return total, components

    def _through_graph(self, model: Model, images: Tensor | None, adapted: Pyramid) -> Through:
        fused = model.graph(images, adapted)
        return Through(fused, model.branches["detect"](fused) if self.maps else [])


class Through(NamedTuple):
    """What the rest of the network makes of an adapted pyramid."""

    fused: Pyramid
    maps: list[Tensor]


class AlignedTasksObjective:
    """The tasks' losses, and beside them the alignment, on one forward pass.

    A few labels would undo what many unlabelled views taught the adapters, so the alignment loss stays on.
    """

    def __init__(self, tasks: TasksObjective, align: AlignObjective, weight: float) -> None:
        self.tasks = tasks
        self.align = align
        self.weight = weight

    def __call__(self, model: Model, batch: Batch) -> Losses:
        images, pyramid, wanted = seen_by_both(model, self.align.teacher, batch)
        outputs = shared_maps(model(images, pyramid=pyramid))
        losses = self.tasks.judge(model, outputs, batch)
        through = Through(outputs.fused, outputs.detect)
        total, components = self.align.judge(model, images, outputs.adapted, wanted, through)
        own = len(batch.indices)
        share = own / images_each(own, model.anchors.device)
        return Losses(
            losses.tasks | {ALIGN: self.weight * share * total}, losses.components | components, losses.shared
        )


def seen_by_both(model: Model, teacher: nn.Module | None, batch: Batch) -> tuple[Tensor | None, Pyramid, Pyramid]:
    """A batch's images where it has them, the extractor's features, and what the replaced layers gave."""
    if batch.replaced is not None and batch.pyramid is not None:
        return None, batch.pyramid, batch.replaced
    assert batch.images is not None, "the replaced layers see images"
    assert teacher is not None
    assert model.extractor is not None
    images = pixels(batch.images)
    pyramid = batch.pyramid if batch.pyramid is not None else features_of(model.extractor, images)
    return images, pyramid, teacher(images)


@torch.no_grad()
def match_adapters(model: Model, teacher: nn.Module | None, batches: Iterable[Batch]) -> None:
    """Give the adapters' outputs the replaced layers' mean and variance per channel, over the given batches."""
    assert model.adapters is not None
    seen = [seen_by_both(model, teacher, batch) for batch in batches]
    pairs = [(model.adapters(pyramid, input_size(images, pyramid)), wanted) for images, pyramid, wanted in seen]
    match_statistics(model.adapters, moments(found for found, _ in pairs), moments(wanted for _, wanted in pairs))


def level_errors(found: Pyramid, wanted: Pyramid) -> dict[int, Tensor]:
    """Stride -> mean squared error over the variance of what is wanted. 1.0: no better than predicting its mean."""
    return {stride: relative_error(found[stride].float(), target.float()) for stride, target in wanted.items()}


def map_errors(found: list[Tensor], wanted: list[Tensor]) -> dict[str, Tensor]:
    """Distance of raw maps [B, A, H, W, 5 + classes], weighted by the wanted objectness, zero for equal maps.

    Background rows teach objectness only (Mehta and Ozturk 2018, arXiv:1805.06361). Each sum is divided by the sum of
    the wanted objectness; classes also by their number.
    """
    total = found[0].new_zeros(4, dtype=torch.float32)
    for level in believed(found, wanted):
        scores = bernoulli_divergence(level.scores, level.wanted_scores).sum()
        boxes = (level.found[:, BOX].sigmoid() - level.wanted[:, BOX].sigmoid()).square().sum(1)
        kinds = bernoulli_divergence(level.found[:, CLASSES], level.wanted[:, CLASSES]).mean(1)
        parts = scores, (level.belief * boxes).sum(), (level.belief * kinds).sum(), level.objects
        total = total + torch.stack(parts)
    errors = total[:3] / total[3].clamp(min=1.0)
    return dict(zip(("align.objectness", "align.boxes", "align.classes"), errors, strict=True))


def make_align(
    model: Model, arguments: Mapping[str, Any], device: torch.device, *, stored: bool = False
) -> AlignObjective:
    """From a stage's arguments. stored: batches bring the replaced layers' outputs along.

    Raises ConfigError: no adapters, no official weights, a trained graph, a wrong word.
    """
    unknown = next((key for key in arguments if key not in OPTIONS), None)
    if unknown is not None:
        raise ConfigError(f"plan: arguments: align has no option {unknown!r}; {nearest(unknown, OPTIONS)}")
    options = {key: _weight(key, value) for key, value in arguments.items()}
    teacher = None if stored else alignment_teacher(model).to(device)
    if options and any(parameter.requires_grad for parameter in model.graph.parameters()):
        raise ConfigError("plan: align with fused or maps goes through the frozen graph; take detector out of train")
    return AlignObjective(teacher, **options)


def _weight(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"plan: arguments: {option} is a weight, a finite number from 0 on, got {value!r}")
    return float(value)


def without_labels(split: Split) -> Split:
    """The same images; nothing of their labels reaches training."""
    none = np.zeros(0, np.int64)
    records = [
        replace(record, labels=replace(record.labels.select(none), labelled=frozenset(), segments=None, keypoints=None))
        for record in split.records
    ]
    return replace(split, records=records, points=None, flip_idx=None)
