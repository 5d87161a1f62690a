"""What a model does not know when training starts: classes that its weights have no rows for, branches without labels.

Where a plan protects the detector as a whole, the branch with fresh classes learns all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtyolo.config.plan import PlanConfig, StageConfig
from mtyolo.config.training import LossGains
from mtyolo.data.records import Split
from mtyolo.model import Model
from mtyolo.training.stages import Stage, learns, lr_scales

AROUND = ["detector.backbone", "detector.neck"]
"""A detector without its branch."""
STAY_UNKNOWN = (
    "no stage of this plan teaches them to the detect branch, so they stay at random; let a stage train it on labels, "
    "or run another plan afterwards"
)


def with_fresh_classes(plan: PlanConfig, model: Model) -> PlanConfig:
    """The same plan, in which `detector` leaves the detect branch out where it has classes to learn.

    Frozen, or at a rate made for what knows its work, they would stay random to the end. The branch's rate is scaled by
    the share of its classes that are fresh, so that what the others know is kept. Measured on coco_mini at 320 pixels,
    12 epochs, one seed, box AP: its persons, vehicles and animals as three new classes, at the whole rate 0.067 to
    0.344, at a quarter 0.318, frozen they stay; three of its 57 classes renamed, at a twentieth 0.266 to 0.262, at the
    whole rate 0.244. A stage that names `detect` itself, and a stage without tasks, stay as they are.
    """
    if not model.fresh_classes:
        return plan
    rate = len(model.fresh_classes) / len(model.names)
    return plan.model_copy(update={"stages": [_with_branch(stage, rate) for stage in plan.stages]})


def unknown_in_words(model: Model, stages: Sequence[Stage], split: Split, gains: LossGains) -> Iterator[str]:
    """Lines for people, of a run that is about to start."""
    fresh = model.fresh_classes
    if fresh:
        taught = any(teaches_classes(stage, model, gains) for stage in stages)
        yield (
            f"{len(fresh)} of {len(model.names)} classes are unknown to the weights, first {fresh[0]!r}: "
            + ("the detect branch learns them, also where the plan freezes the detector" if taught else STAY_UNKNOWN)
        )
    silent = [task for task in model.tasks if task not in split.taught]
    if silent and all(stage.config.objective == "tasks" and stage.config.distill is None for stage in stages):
        yield f"{', '.join(silent)}: {split.name} has no labels for it, so it stays as it is"


def teaches_classes(stage: Stage, model: Model, gains: LossGains) -> bool:
    """Do labels or teachers move what tells classes in the detect branch? Not at a rate, a gain or a weight of zero."""
    distill = stage.config.distill
    if not any(scale for name, scale in lr_scales(model, stage).items() if name.startswith("branches.detect.layers.")):
        return False
    return (learns(stage, "detect") and gains.classes > 0) or (distill is not None and distill.teaches_classes)


def _with_branch(stage: StageConfig, rate: float) -> StageConfig:
    if stage.objective != "tasks":
        return stage
    freeze, scales = stage.freeze, stage.lr_scale
    if "detector" in freeze and "detect" not in freeze:
        freeze = [*(part for part in freeze if part != "detector"), *AROUND]
        scales = {"detect": rate} | scales
    elif "detector" in scales:
        scales = {"detect": max(rate, scales["detector"])} | scales
    return stage.model_copy(update={"freeze": freeze, "lr_scale": scales})
