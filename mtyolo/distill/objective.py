"""What a student learns from its teachers in a step: named terms, which join the task losses as one more loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtyolo.config.distill import BRANCH_OF, DistillConfig, TeacherConfig
from mtyolo.distill import instance_terms, row_terms
from mtyolo.distill.feature_terms import FeatureTerm, detection_loss, make_feature_terms
from mtyolo.distill.layout import geometry
from mtyolo.distill.lessons import Opened, open_lessons
from mtyolo.distill.pictures import Pictures
from mtyolo.distill.schedules import DynamicWeights, ThreeTimesRule, Weights, weights_at
from mtyolo.distill.teachers import Answer, Own, layer_of, layout_of, recording, replaced_layers
from mtyolo.errors import ConfigError
from mtyolo.geometry import default_sigmas
from mtyolo.model import Model
from mtyolo.structures import Outputs, Targets

RUNS_WEIGHTS = ("best", "last")
"""Files that every run leaves: what tells them apart is the folder."""


@dataclass
class Exchange:
    """Raw outputs of both on the same pictures, and what the terms make of them, each computed once."""

    model: Model
    config: TeacherConfig
    student: Outputs
    teacher: Outputs
    size: tuple[int, int]
    sigmas: Tensor | None

    @property
    def maps(self) -> tuple[list[Tensor], list[Tensor]]:
        """[B, A, H, W, 5 + classes] a level, of student and teacher."""
        return self.student.detect, self.teacher.detect

    @cached_property
    def groups(self) -> row_terms.Groups:
        return row_terms.Groups(**self.config.groups.model_dump())

    @cached_property
    def picks(self) -> instance_terms.Picks:
        return instance_terms.confident(self.teacher.detect, geometry(layout_of(self.model), self.size))

    def masks(self) -> Tensor:
        assert self.student.segment is not None
        assert self.teacher.segment is not None
        return instance_terms.mask_divergence(self.student.segment, self.teacher.segment, self.picks, self.size)

    def keypoints(self) -> Tensor:
        assert self.student.keypoint is not None
        assert self.teacher.keypoint is not None
        sigmas = torch.tensor(default_sigmas(self.model.keypoints or 0)) if self.sigmas is None else self.sigmas
        place = self.picks, self.size, sigmas.to(self.picks.belief.device)
        return instance_terms.keypoint_divergence(self.student.keypoint, self.teacher.keypoint, *place)


OUTPUT_TERMS: dict[str, Callable[[Exchange], Tensor]] = {
    "mse": lambda exchange: row_terms.logit_mse(*exchange.maps, exchange.groups),
    "kl": lambda exchange: row_terms.bernoulli_kl(*exchange.maps, exchange.config.temperature, exchange.groups),
    "soft": lambda exchange: row_terms.soft_bce(*exchange.maps, exchange.groups),
    "scaled": lambda exchange: row_terms.objectness_scaled(*exchange.maps, exchange.groups),
    "masks": Exchange.masks,
    "keypoints": Exchange.keypoints,
}


@dataclass
class Course:
    """One teacher, what it says, and what is learned from it."""

    config: TeacherConfig
    opened: Opened
    features: list[FeatureTerm]

    @property
    def name(self) -> str:
        path = Path(self.config.weights)
        folders = [folder.name for folder in path.parents if folder.name not in ("", "weights")]
        return folders[0] if path.stem in RUNS_WEIGHTS and folders else path.stem

    @property
    def terms(self) -> list[str]:
        return [*self.config.output, *(term.name for term in self.features)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the teacher must be good at."""
        return tuple(dict.fromkeys(BRANCH_OF.get(term, "detect") for term in self.config.output)) or ("detect",)


class Seen(NamedTuple):
    """What is gathered around a forward pass of the student."""

    pictures: Pictures
    features: Mapping[int, Tensor]  # number of a layer that terms look at -> its output
    asked: list[Answer]  # of each teacher


class Distiller(nn.Module):
    """The teachers of a stage. Its own parameters are the projectors: they train with the student, and are not saved
    with it."""

    def __init__(self, config: DistillConfig, courses: Sequence[Course], student: Model, sigmas: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.courses = list(courses)
        self.sigmas = sigmas
        self.learned = nn.ModuleList(nn.ModuleList(course.features) for course in courses)
        layers = {number for course in courses for term in course.features for number in term.student_layers}
        self.replaced = {number: stride for number, stride in replaced_layers(student).items() if number in layers}
        self.watched = {number: layer_of(student, number) for number in sorted(layers - self.replaced.keys())}
        self.names = _names(self.courses)
        self.rule = ThreeTimesRule() if config.three_times else None
        self.dynamic = DynamicWeights([name for names in self.names for name in names]) if config.dynamic else None
        self.weights = Weights(config.soft, config.hard)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Epochs of the stage, counted from 0."""
        self.weights = weights_at(self.config, epoch, epochs)

    def end_epoch(self, fitness: object) -> None:
        """fitness: of the validation, where there was one."""
        if self.rule is not None:
            self.rule.end_epoch()
        if self.dynamic is not None and isinstance(fitness, float):
            self.dynamic.judge(fitness)

    @contextmanager
    def watching(self, pictures: Pictures) -> Iterator[Seen]:
        """Around the student's forward pass on these."""
        asked = [course.opened.lessons.ask(pictures) for course in self.courses]
        with recording(self.watched) as features:
            yield Seen(pictures, features, asked)

    def forward(self, model: Model, outputs: Outputs, seen: Seen, targets: Targets) -> dict[str, Tensor]:
        """Term -> scalar, weighted as its teacher's config says; a mean over images."""
        found: dict[str, Tensor] = {}
        features = {**seen.features, **{number: outputs.adapted[stride] for number, stride in self.replaced.items()}}
        for course, names, answer in zip(self.courses, self.names, seen.asked, strict=True):
            lesson = answer()
            exchange = Exchange(model, course.config, outputs, lesson.outputs, seen.pictures.size, self.sigmas)
            # On a CPU, autocast refuses the float16 of saved outputs; and differences of logits want single precision.
            with torch.autocast(seen.pictures.device.type, enabled=False):
                values = [weight * OUTPUT_TERMS[term](exchange) for term, weight in course.config.output.items()]
            values += [term(model, outputs, features, lesson, targets) for term in course.features]
            found |= {name: value * self._factor(name) for name, value in zip(names, values, strict=True)}
            if self.rule is not None and "detect" in course.tasks:
                own = sum(float(value.detach()) for value in values)
                self.rule.add(own, float(detection_loss(model, lesson.outputs, targets)))
        return found

    def _factor(self, name: str) -> float:
        return 1.0 if self.dynamic is None else self.dynamic.factors[name]

    @property
    def progress(self) -> Progress:
        return Progress(self)


class Progress:
    """All of a distiller that a bit-exact continuation needs; not the teachers."""

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    def state_dict(self) -> dict[str, Any]:
        parts = {"learned": self.distiller.learned, "rule": self.distiller.rule, "dynamic": self.distiller.dynamic}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, saved in state.items():
            getattr(self.distiller, name).load_state_dict(saved)


def make_distiller(
    config: DistillConfig,
    student: Model,
    *,
    imgsz: int,
    device: torch.device,
    sigmas: Sequence[float] | None = None,
    own: Own | None = None,
) -> Distiller:
    """Open a stage's teachers. own: classes by name, and trust, for their models. Raises ConfigError where teacher and
    student do not fit, before anything is trained."""
    courses = []
    for one in config.teachers:
        _check_branches(one, student)
        opened = open_lessons(one, student, imgsz, device, own, maps=bool(one.output) or config.three_times)
        _check_teachers_branches(one, opened, student)
        courses.append(Course(one, opened, make_feature_terms(one, student, opened)))
    points = None if sigmas is None else torch.tensor(sigmas, device=device)
    made = Distiller(config, courses, student, points)
    return made.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_branches(config: TeacherConfig, student: Model) -> None:
    for term in config.output:
        branch = BRANCH_OF.get(term, "detect")
        if branch not in student.tasks:
            raise ConfigError(
                f"distill: {term} teaches the student's {branch} branch, which it does not have; add {branch} to the "
                "model's tasks, or leave the term out"
            )


def _check_teachers_branches(config: TeacherConfig, opened: Opened, student: Model) -> None:
    for term in config.output:
        branch = BRANCH_OF.get(term, "detect")
        if branch not in opened.tasks:
            raise ConfigError(
                f"teacher {config.weights}: has no {branch} branch to teach {term} with, only "
                f"{', '.join(opened.tasks)}; leave the term out, or name another teacher for it"
            )
        if branch == "keypoint" and opened.points != student.keypoints:
            raise ConfigError(
                f"teacher {config.weights}: knows {opened.points} points, the student {student.keypoints}; "
                "keypoints are taught point by point: leave the term out"
            )


def _names(courses: Sequence[Course]) -> list[list[str]]:
    """distill.<term>; with the teacher's name behind it where several teach the same, and a number where that is not
    enough."""
    counts = Counter(term for course in courses for term in course.terms)
    met: Counter[str] = Counter()

    def name(term: str, course: Course) -> str:
        found = f"distill.{term}" if counts[term] == 1 else f"distill.{term}.{course.name}"
        met[found] += 1
        return found if met[found] == 1 else f"{found}.{met[found]}"

    return [[name(term, course) for term in course.terms] for course in courses]


__all__ = ["Course", "Distiller", "make_distiller"]
