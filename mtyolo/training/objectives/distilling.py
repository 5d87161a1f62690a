"""Teachers in the training loop: one more loss beside those of the tasks, and a check before hours are spent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from mtyolo.config.model import resolve_beside
from mtyolo.config.plan import PlanConfig, StageConfig
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.records import ImageRecord, Split
from mtyolo.distill.cards import is_saved
from mtyolo.distill.classes import only_numbered
from mtyolo.distill.objective import Course, Distiller, make_distiller
from mtyolo.distill.pictures import pictures_of
from mtyolo.distill.teachers import NoLesson, Own, open_source
from mtyolo.errors import ConfigError, DataError
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model, forward
from mtyolo.structures import Batch
from mtyolo.training.batches.stored import validation_batches
from mtyolo.training.objectives.tasks import Losses, TasksObjective, shared_features, shared_maps
from mtyolo.training.processes import images_each
from mtyolo.training.records.judging import Judge
from mtyolo.training.stages import Stage

DISTILL = "distill"
"""The name that a balancer and the results know."""

LEAD = 0.05
"""A teacher that is better by less than this teaches its own mistakes, mostly."""


class DistilledObjective:
    """The tasks' losses and the teachers' terms on one forward pass. records: of the split, to name pictures."""

    def __init__(self, tasks: TasksObjective, distiller: Distiller, records: Sequence[ImageRecord]) -> None:
        self.tasks = tasks
        self.distiller = distiller
        self.records = records

    def __call__(self, model: Model, batch: Batch) -> Losses:
        soft, hard = self.distiller.weights
        with self.distiller.watching(pictures_of(batch)) as seen:
            outputs = shared_maps(forward(model, batch))
        losses = self.tasks.judge(model, outputs, batch) if hard else Losses({}, {}, shared_features(outputs))
        try:
            terms = self.distiller(model, outputs, seen, batch.targets)
        except NoLesson as error:
            raise DataError(f"{self.records[int(batch.indices[error.number])].path}: {error}") from None
        tasks = {task: hard * loss for task, loss in losses.tasks.items()}
        own = len(batch.indices)  # teachers' terms are means over these, not over all processes' objects
        share = own / images_each(own, batch.indices.device)
        tasks[DISTILL] = soft * torch.stack(list(terms.values())).sum() * share
        return Losses(tasks, losses.components | terms, losses.shared)


def name_classes(student: Model, plan: PlanConfig, own: Own | None = None) -> None:
    """Classes get the names of the first teacher who is asked by name and knows as many. own: classes by name, and
    trust, as `load` takes them.

    Raises what opening a teacher raises.
    """
    stages = [stage for learner in (*plan.assistants, plan) for stage in learner.stages]
    teachers = [teacher for stage in stages if stage.distill for teacher in stage.distill.teachers]
    for teacher in (teacher for teacher in teachers if teacher.classes == "by-name"):
        path = resolve_beside(teacher.weights, Path("plan.yaml"))
        names = {} if path is None else open_source(teacher, own).names
        if len(names) == len(student.names) and not only_numbered(names):
            fresh = [names[number] for number, name in student.names.items() if name in student.fresh_classes]
            student.names = dict(names)
            student.config = student.config.model_copy(update={"names": dict(names)}).with_unknown(fresh)
            return


def teachers_files(plan: PlanConfig) -> dict[str, str]:
    """Path -> SHA-256 of the teachers that are files now: not of folders, nor of those that a run makes on its way."""
    stages = [stage for learner in (*plan.assistants, plan) for stage in learner.stages]
    teachers = {teacher.weights for stage in stages if stage.distill for teacher in stage.distill.teachers}
    paths = {name: resolve_beside(name, Path("plan.yaml")) for name in sorted(teachers)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path is not None}


def stage_distiller(
    stage: Stage,
    model: Model,
    split: Split,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    stored: bool,
    own: Own | None = None,
) -> Distiller | None:
    """The teachers that a stage names. stored: does it read a feature store? own: as above. Raises ConfigError for what
    can not go together."""
    if stage.config.distill is None:
        return None
    refuse(stage.config, config, stored=stored, processes=accelerator.num_processes)
    sigmas = split.sigmas or (model.keypoint.sigmas if model.keypoint else None)
    return make_distiller(
        stage.config.distill, model, imgsz=config.imgsz, device=accelerator.device, sigmas=sigmas, own=own
    )


def repeats(stage: Stage) -> int | None:
    """So many draws of the augmentation are made, then they repeat; None: without end."""
    numbers = [teacher.cache for teacher in stage.teachers if teacher.cache and teacher.cache is not True]
    return min(numbers, default=None)


def reads_lessons(stage: Stage) -> bool:
    """Does a stage look for outputs on disk?"""
    return any(teacher.cache or is_saved(Path(teacher.weights)) for teacher in stage.teachers)


def refuse(stage: StageConfig, config: TrainConfig, *, stored: bool, processes: int) -> None:
    """Raises ConfigError for teachers who ask for what the stage is not. stored: does it read a feature store?"""
    distill, place = stage.distill, f"plan: stage {stage.name!r}: distill"
    if distill is None:
        return
    own = stage.augment
    varies = own if isinstance(own, AugmentConfig) else config.augment if own else None
    # A store's views are the same in every epoch, and what a plan says for pixels does not move them.
    moves = not stored and varies is not None and any(varies.model_dump().values())
    if stage.aligns:
        raise ConfigError(f"{place}: joins the objective tasks; align has a teacher of its own")
    if moves and any(teacher.cache is True for teacher in distill.teachers):
        raise ConfigError(
            f"{place}: cache: true never meets the same picture twice under random augmentation; "
            "set augment: false, or cache: 8 for eight draws that repeat"
        )
    gradient = any(term.method == "gradient" for teacher in distill.teachers for term in teacher.feature_terms)
    if processes > 1 and (distill.three_times or distill.dynamic or gradient):
        raise ConfigError(
            f"{place}: three_times, dynamic and gradient (of per-level, too) look at one process's losses; run them in "
            "one process"
        )


def refuse_unjudged(plan: PlanConfig, model: Model, judge: Judge | None, split: Split | None) -> None:
    """Raises ConfigError for a stage, of assistants, too, that would try weights with nothing to say whether they
    help. split: for validation, or None."""
    labels = [] if judge is None or split is None else [record.labels for record in split.records]
    if any(not one.crowd.all() and one.labelled.intersection(model.tasks) for one in labels):
        return
    stages = [stage for learner in (*plan.assistants, plan) for stage in learner.stages]
    lost = next((stage.name for stage in stages if stage.distill is not None and stage.distill.dynamic), None)
    if lost is not None:
        raise ConfigError(
            f"plan: stage {lost!r}: distill: dynamic asks the validation metric which terms help, and there is none; "
            f"name a val split with labels for {', '.join(model.tasks)} in the data, or leave dynamic out"
        )


def teacher_reports(
    distiller: Distiller, judge: Judge, model: Model, split: Split, config: TrainConfig, store: FeatureStore | None
) -> Iterator[str]:
    """A line for each teacher: its metric in the student's layout, beside the student's, or why it is not validated.

    store: has the student's features of the split; None to take its images.
    """
    stored = {} if store is None else {"loader": validation_batches(store, split, config.batch)}
    for course in distiller.courses if distiller.config.check else ():
        tasks = tuple(task for task in course.tasks if split.count(task))
        if reason := _unchecked(course, tasks, split):
            yield f"teacher {course.name}: not checked: {reason}"
            continue
        options = {"size": config.imgsz, "batch": config.batch, "tasks": tasks}
        found = judge.validate(course.opened.teacher, split, **options).fitness
        own = judge.validate(model, split, **options, **stored).fitness
        if math.isnan(found):  # the split shows nothing to find for these tasks
            continue
        words = f"teacher {course.name}: {', '.join(tasks)} {found:.3f}, the student {own:.3f}"
        if found < own + LEAD:
            words = f"warning: {words}: less than {LEAD * 100:.0f} points better, it may teach little"
        yield words


def _unchecked(course: Course, tasks: tuple[str, ...], split: Split) -> str | None:
    """Why a teacher can not be validated; None where it can."""
    if course.opened.teacher is None:
        return "saved outputs are of the pictures that they were made of"
    if not tasks:
        return f"{split.name} has no labels for {', '.join(course.tasks)}"
    if "detect" in tasks and None in course.opened.teacher.columns:
        return "it does not know all classes, so its box AP would say little"
    return None


__all__ = [
    "DISTILL",
    "DistilledObjective",
    "name_classes",
    "reads_lessons",
    "refuse",
    "refuse_unjudged",
    "repeats",
    "stage_distiller",
    "teacher_reports",
    "teachers_files",
]
