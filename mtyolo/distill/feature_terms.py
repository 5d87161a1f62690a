"""Losses on features, at the layers and with the weights that a plan names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtyolo.config.distill import FeatureConfig, TeacherConfig
from mtyolo.config.training import LossGains
from mtyolo.distill.features import FEATURE_LOSSES, PUBLISHED_WEIGHTS, SUMMED, pooled
from mtyolo.distill.head_gradients import Side, detection_gradients
from mtyolo.distill.lessons import Opened, Pair, layer_pairs
from mtyolo.distill.low_rank import LowRank
from mtyolo.distill.teachers import Lesson, Teacher, layer_of, neck_of, replaced_layers
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.structures import Outputs, Targets
from mtyolo.tasks import compute_losses, official_gains

Compared = Tensor | LowRank


class FeatureTerm(nn.Module):
    """One method at one or several layers; the weighted sum. pool: of the student's maps; the teacher's come so."""

    def __init__(self, name: str, pairs: Sequence[Pair], losses: Sequence[nn.Module], pool: int = 1) -> None:
        super().__init__()
        self.name = name
        self.pairs = list(pairs)
        self.pool = pool
        self.losses = nn.ModuleList(losses)

    @property
    def student_layers(self) -> list[int]:
        return [pair.student for pair in self.pairs]

    def forward(
        self, model: Model, outputs: Outputs, seen: Mapping[int, Tensor], lesson: Lesson, targets: Targets
    ) -> Tensor:
        """seen: the student's layer -> its output in this pass."""
        found = {number: pooled(seen[number].float(), self.pool) for number in dict.fromkeys(self.student_layers)}
        return self._sum(found, lesson.features)

    def _sum(self, student: Mapping[int, Compared], teacher: Mapping[int, Compared]) -> Tensor:
        values = [
            pair.weight * loss(student[pair.student], teacher[pair.teacher])
            for pair, loss in zip(self.pairs, self.losses, strict=True)
        ]
        return torch.stack(values).sum()


class GradientTerm(FeatureTerm):
    """The same on gradients of the detection loss by what the head takes; zero, without a gradient, where no image is
    labelled.

    The student's is itself differentiated: a second backward pass through its head.
    """

    def __init__(self, name: str, pairs: Sequence[Pair], losses: Sequence[nn.Module], teacher: Teacher) -> None:
        super().__init__(name, pairs, losses)
        # In a list, so that the teacher is no part of what trains.
        self._teacher = [teacher]

    def forward(
        self, model: Model, outputs: Outputs, seen: Mapping[int, Tensor], lesson: Lesson, targets: Targets
    ) -> Tensor:
        if not bool(targets.labelled["detect"].any()):
            return outputs.detect[0].new_zeros(())  # what leads to a zero would decay and drift
        still = [pair.student for pair in self.pairs if not seen[pair.student].requires_grad]
        if still:
            raise ConfigError(
                f"distill: features: gradient teaches what comes before the head, but nothing up to layers {still} "
                "trains in this stage; let it train, or take another method"
            )
        source = self._teacher[0].source
        assert isinstance(source, Model)
        own, theirs = neck_of(model), neck_of(source)
        taken = {theirs.index(pair.teacher): lesson.features[pair.teacher] for pair in self.pairs}
        sides = [_student_side(model, outputs, [own.index(pair.student) for pair in self.pairs]), Side(source, taken)]
        found, wanted = detection_gradients(sides, targets)
        return self._sum(
            {own[level]: gradient for level, gradient in found.items()},
            {theirs[level]: gradient for level, gradient in wanted.items()},
        )


def _student_side(model: Model, outputs: Outputs, levels: Sequence[int]) -> Side:
    """Both lead to what the branches see, where balancers ask for gradients. Raw maps are there already; in half
    precision they are rounded, as the teacher's are not."""
    raw = outputs.detect[0].dtype == torch.float32
    maps = outputs.detect if raw else list(outputs.fused.values())
    return Side(model, {level: maps[level] for level in levels}, raw)


def make_feature_terms(config: TeacherConfig, student: Model, opened: Opened) -> list[FeatureTerm]:
    """Sized from both sides. Raises ConfigError for layers that are not there, weights that do not fit, and a teacher
    that only says something about layers that nothing which trains leads to."""
    terms = [_term(one, config, student, opened) for one in config.feature_terms]
    layers = sorted({layer for term in terms for layer in term.student_layers})
    if layers and not config.output and not any(_trains(student, layer) for layer in layers):
        raise ConfigError(
            f"teacher {config.weights}: features looks at layers {', '.join(map(str, layers))}, but nothing up to them "
            "trains in this stage, so the student could not follow; let it train, or name later layers"
        )
    return terms


def _term(config: FeatureConfig, teacher: TeacherConfig, student: Model, opened: Opened) -> FeatureTerm:
    if not opened.channels:
        raise ConfigError(
            f"teacher {teacher.weights}: holds no features, only outputs; leave features out, or let a run whose plan "
            "names them with the teacher itself fill another folder"
        )
    scale = PUBLISHED_WEIGHTS[config.method] if config.weight is None else config.weight
    scale *= teacher.pool**2 if config.method in SUMMED else 1
    found = layer_pairs(config, student, opened.neck)
    pairs = [pair._replace(weight=pair.weight * scale) for pair in found]
    losses = []
    for pair in pairs:
        if pair.student not in replaced_layers(student):
            layer_of(student, pair.student)
        if pair.teacher not in opened.channels:
            held = ", ".join(map(str, opened.channels))
            raise ConfigError(f"teacher {teacher.weights}: has no features of layer {pair.teacher}, only of {held}")
        own = student.graph.levels[pair.student].channels
        losses.append(FEATURE_LOSSES[config.method](own, opened.channels[pair.teacher]))
    if config.method != "gradient":
        return FeatureTerm(config.method, pairs, losses, teacher.pool)
    return GradientTerm(config.method, pairs, losses, _with_own_head(teacher, student, opened))


def _trains(student: Model, number: int) -> bool:
    """Is there something that trains in what a layer's output comes from?"""
    modules, given = student.graph.leading_to(number)
    before = [student.extractor, student.adapters] if given else []
    leading = [module for module in (*modules, *before) if module is not None]
    return any(parameter.requires_grad for module in leading for parameter in module.parameters())


def _with_own_head(config: TeacherConfig, student: Model, opened: Opened) -> Teacher:
    """The teacher whose head the labels are pushed through."""
    teacher = opened.teacher
    if teacher is None or not isinstance(teacher.source, Model) or config.size is not None:
        raise ConfigError(
            f"teacher {config.weights}: gradient pushes the labels through the teacher's own head: it needs a YOLOv5 "
            "model at the student's size, not saved outputs or another family"
        )
    if teacher.columns != tuple(range(len(teacher.source.names))):
        raise ConfigError(
            f"teacher {config.weights}: gradient (of per-level, too) needs the student's classes, in the student's "
            "order; take another method, or a teacher of these classes"
        )
    return teacher


def detection_loss(model: Model, outputs: Outputs, targets: Targets) -> Tensor:
    """The official loss of maps in the model's layout, a mean over images."""
    size = outputs.detect[0].shape[2] * model.strides[0]
    gains = official_gains(LossGains(), classes=len(model.names), size=size, levels=len(model.strides))
    found = compute_losses(("detect",), outputs, targets, model.anchors, model.strides, gains)
    return torch.stack(list(found["detect"].values())).sum() / len(outputs.detect[0])
