"""From what a plan says about a teacher to a source of lessons: a model, a model with a cache, or saved outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from mtyolo.config.distill import FeatureConfig, TeacherConfig
from mtyolo.config.model import resolve_beside
from mtyolo.distill.cards import card_of, folder_of, is_saved, pool_card, student_card
from mtyolo.distill.pictures import Pictures
from mtyolo.distill.saved import SavedLessons, held_by
from mtyolo.distill.teachers import Answer, Own, Teacher, neck_of, open_teacher
from mtyolo.errors import ConfigError
from mtyolo.model import Model, pixels

OF_ASKED = ("size", "classes", "graph")
"""What a plan says of a teacher that computes."""


class Pair(NamedTuple):
    """Layers that belong together."""

    student: int
    teacher: int
    weight: float


class Lessons(Protocol):
    """From pictures to what a teacher says about them."""

    def ask(self, pictures: Pictures) -> Answer:
        """Begins what can go on beside the student's forward pass."""
        ...


class LiveLessons:
    """The teacher is asked about every batch."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def ask(self, pictures: Pictures) -> Answer:
        return lambda: self.teacher.lesson(pixels(pictures.all))


class Opened:
    """A teacher as a plan names it. `teacher` is None for saved outputs. channels: of its recorded layers.

    tasks, points: what it can teach; points are None where it knows none.
    """

    def __init__(
        self,
        lessons: Lessons,
        teacher: Teacher | None,
        neck: Sequence[int],
        channels: dict[int, int],
        tasks: Sequence[str],
        points: int | None,
    ) -> None:
        self.lessons = lessons
        self.teacher = teacher
        self.neck = tuple(neck)
        self.channels = channels
        self.tasks = tuple(tasks)
        self.points = points


def open_lessons(
    config: TeacherConfig,
    student: Model,
    imgsz: int,
    device: torch.device,
    own: Own | None = None,
    *,
    maps: bool = True,
) -> Opened:
    """own: classes by name, and trust, for a teacher's model. maps: are its outputs asked for, or features alone?

    Raises ConfigError, CheckpointError or StoreError where teacher, files and student do not fit.
    """
    folder = Path(config.weights)
    if is_saved(folder):
        _refuse_beside_saved(config)
        saved = SavedLessons(folder, student_card(student, imgsz) | pool_card(config.pool), None, maps=maps)
        held = held_by(folder)
        return Opened(saved, None, tuple(held.channels), held.channels, held.tasks, held.points)
    teacher = open_teacher(config, student, imgsz, own).to(device)
    neck = neck_of(teacher.source)
    channels = teacher.record([number for term in config.feature_terms for number in _wanted(term, student, neck)])
    lessons = _lessons(config, teacher, imgsz, maps)
    return Opened(lessons, teacher, neck, channels, teacher.tasks, teacher.keypoints)


def _refuse_beside_saved(config: TeacherConfig) -> None:
    usual = {name: field.default for name, field in TeacherConfig.model_fields.items()}
    given = next((name for name in OF_ASKED if getattr(config, name) != usual[name]), None)
    if given is not None:
        raise ConfigError(
            f"teacher {config.weights}: is a folder of saved outputs, and {given} is for a teacher that is asked; "
            f"leave {given} out, as outputs stay as they were written"
        )


def _lessons(config: TeacherConfig, teacher: Teacher, imgsz: int, maps: bool) -> Lessons:
    if not config.cache:
        return LiveLessons(teacher)
    weights = resolve_beside(config.weights, Path("plan.yaml")) or Path(config.weights)
    card = card_of(teacher, weights, imgsz)
    return SavedLessons(folder_of(config.folder, card), card, teacher, maps=maps)


def _wanted(config: FeatureConfig, student: Model, teacher_neck: Sequence[int]) -> list[int]:
    """The teacher's layers that a term needs."""
    return [pair.teacher for pair in layer_pairs(config, student, teacher_neck)]


def layer_pairs(config: FeatureConfig, student: Model, teacher_neck: Sequence[int]) -> list[Pair]:
    """Layers of student and teacher that belong together, in the plan's order; not those that weigh nothing."""
    found = _numbers(config, student, teacher_neck)
    weights = config.levels or [1.0] * len(found)
    if len(weights) != len(found):
        raise ConfigError(
            f"distill: features: {config.method} has {len(weights)} levels, but {len(found)} layers; give one each"
        )
    return [Pair(*numbers, weight) for numbers, weight in zip(found, weights, strict=True) if weight]


def _numbers(config: FeatureConfig, student: Model, teacher_neck: Sequence[int]) -> list[tuple[int, int]]:
    if config.layers == "neck":
        own = neck_of(student)
        if len(own) != len(teacher_neck):
            raise ConfigError(
                f"distill: features: the student's neck has {len(own)} levels, the teacher's {len(teacher_neck)}; "
                "name the layers that belong together, layers: {17: 15, …}"
            )
        return list(zip(own, teacher_neck, strict=True))
    if isinstance(config.layers, dict):
        return list(config.layers.items())
    return [(number, number) for number in config.layers]
