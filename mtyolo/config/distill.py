"""What a stage may say about teachers: its key `distill`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mtyolo.config.strict import PathText, Positive, Strict

Weight = Annotated[float, Field(ge=0)]

OUTPUT_TERM = Literal["mse", "kl", "soft", "scaled", "masks", "keypoints"]
BRANCH_OF = {"masks": "segment", "keypoints": "keypoint"}
"""What a term of `output` needs from both models; all others need detect."""
KIND = "<teacher>"
CACHE = f"runs/teachers/{KIND}"

FEATURE_METHOD = Literal["fitnets", "relative", "spatial", "channel", "cwd", "mgd", "gradient"]


class FeatureConfig(Strict):
    """One loss between feature maps, at one or several layers."""

    method: FEATURE_METHOD
    layers: Literal["neck"] | list[int] | dict[int, int] = "neck"
    """neck: what the branches take, fine to coarse; layer numbers of both models; or the student's: the teacher's."""
    levels: list[Weight] | None = None
    """Weights in the order of the layers, fine to coarse. Default: 1 each."""
    weight: Weight | None = None
    """Default: what the method's authors take."""

    @model_validator(mode="after")
    def _gradients_come_from_the_neck(self) -> FeatureConfig:
        if self.method == "gradient" and self.layers != "neck":
            raise ValueError("gradient is computed at what the branches take: layers: neck")
        return self

    @model_validator(mode="after")
    def _compares_something(self) -> FeatureConfig:
        if not self.layers:
            raise ValueError("layers names none: name some, such as [17, 20, 23], or leave the key out for the neck")
        if self.levels is not None and not any(self.levels):
            raise ValueError("levels: no layer weighs anything; give one of them more than 0, or leave this loss out")
        return self


PER_LEVEL = (
    FeatureConfig(method="fitnets", levels=[0.4, 0, 0], weight=1),
    FeatureConfig(method="spatial", levels=[0.4, 0, 0]),
    FeatureConfig(method="gradient", levels=[0, 0.3, 0]),
    FeatureConfig(method="channel", levels=[0, 0, 0.3]),
)
"""The preset `per-level`: 0.4 / 0.3 / 0.3 for strides 8 / 16 / 32, with a kind of its own for each."""


class GroupsConfig(Strict):
    """Weights of box, objectness and classes within the terms over rows."""

    box: Weight = 1.0
    objectness: Weight = 1.0
    classes: Weight = 1.0


class TeacherConfig(Strict):
    """One teacher and what is learned from it."""

    weights: PathText
    """Weights that mtyolo wrote, an official .pt, an ultralytics detect, segment or pose .pt, a file of its tensors
    as .safetensors (then name `graph`), or a folder of saved outputs."""
    graph: PathText | None = None
    """For plain tensors: the ultralytics YAML that they belong to, such as yolov8n.yaml."""
    size: Positive | None = None
    """Side of the teacher's input in pixels. Default: the student's."""
    classes: Literal["by-name", "by-number"] | dict[str, str] = "by-name"
    """How the student's classes are found among the teacher's; or the student's name: the teacher's, for those that
    differ."""
    output: dict[OUTPUT_TERM, Weight] = {}
    """Losses between raw outputs, with weights."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of kl."""
    groups: GroupsConfig = GroupsConfig()
    features: list[FeatureConfig] | Literal["per-level"] = []
    """Losses between feature maps."""
    pool: Positive = 1
    """Feature maps are compared by means of so many positions each way: 2 keeps a quarter of them on disk."""
    cache: bool | Positive = False
    """true: outputs stay on disk; for pictures without random augmentation, or the views of a feature store. A number:
    for so many draws of the augmentation, which then repeat."""
    folder: PathText | None = None
    """Of the cache; `<teacher>` in it becomes a hash of what the teacher is. Default: runs/teachers/<teacher>."""

    @model_validator(mode="after")
    def _teaches_something(self) -> TeacherConfig:
        if not self.output and not self.features:
            raise ValueError("this teacher teaches nothing: give output, for example {scaled: 1}, or features")
        return self

    @model_validator(mode="after")
    def _pools_what_can_be(self) -> TeacherConfig:
        if self.pool > 1 and any(term.method == "gradient" for term in self.feature_terms):
            raise ValueError("pool: gradient (of per-level, too) needs whole maps, as the head does; leave pool out")
        if self.pool > 1 and not self.features:
            raise ValueError("pool is of feature maps, and this teacher has no features; leave it out")
        return self

    @property
    def feature_terms(self) -> tuple[FeatureConfig, ...]:
        return PER_LEVEL if self.features == "per-level" else tuple(self.features)  # type: ignore[arg-type]

    @property
    def tasks(self) -> set[str]:
        """Whose branches learn from this teacher; `gradient` reaches through detect, too."""
        reached = {BRANCH_OF.get(term, "detect") for term, weight in self.output.items() if weight}
        return reached | {"detect" for term in self.feature_terms if term.method == "gradient"}

    @property
    def teaches_classes(self) -> bool:
        """Does the student learn from it what is what?"""
        rows = any(weight and BRANCH_OF.get(term, "detect") == "detect" for term, weight in self.output.items())
        gradient = any(term.method == "gradient" and term.weight != 0 for term in self.feature_terms)
        return (rows and self.groups.classes > 0) or gradient


class DistillConfig(Strict):
    """Teachers of a stage, and how they are weighed against the labels."""

    teachers: Annotated[list[TeacherConfig], Field(min_length=1)]
    schedule: Literal["constant", "phases", "linear", "cosine"] = "constant"
    """phases: soft/hard 0.3/0.7 for the first fifth of the stage, 0.7/0.3 for three fifths, 0.5/0.5 for the last.
    linear, cosine: from 0.9/0.1 to 0.1/0.9."""
    soft: Weight = 1.0
    hard: Weight = 1.0
    """Factors of teachers' terms and of labels' losses; the schedule multiplies them. hard: 0: no label is read, but by
    `gradient` and `three_times`."""
    ramp: Weight = 0.0
    """Epochs over which the teachers' terms come in: min(1, epoch / ramp); 10 is the published value."""
    three_times: bool = False
    """Halve the learning rate after an epoch whose distillation loss exceeds three times the teacher's task loss."""
    dynamic: bool = False
    """Try each term at half its weight for an epoch in turn, and keep what the validation metric says."""
    check: bool = True
    """Validate teachers first, and warn of one that is not at least 5 points better than the student."""

    @model_validator(mode="after")
    def _something_teaches(self) -> DistillConfig:
        if not self.soft and not self.hard:
            raise ValueError("soft and hard are both 0, so nothing would be learned; give one of them a weight")
        return self

    @property
    def tasks(self) -> set[str]:
        """Whose branches learn from some teacher."""
        return {task for teacher in self.teachers for task in teacher.tasks}

    def taught_by(self, weights: Mapping[str, str]) -> DistillConfig:
        """The same with other teachers: `weights` as they stand -> those to take."""
        return self._with_teachers(lambda teacher: {"weights": weights.get(teacher.weights, teacher.weights)})

    def caching_in(self, start: Path) -> DistillConfig:
        """The same with whole paths of the folders that outputs are kept in. start: where relative ones begin."""
        return self._with_teachers(
            lambda teacher: {"folder": str(start / (teacher.folder or CACHE))} if teacher.cache else {}
        )

    def without_cache(self) -> DistillConfig:
        """The same, nothing of which is kept on disk."""
        return self._with_teachers(lambda teacher: {"cache": False})

    def _with_teachers(self, change: Callable[[TeacherConfig], dict[str, Any]]) -> DistillConfig:
        teachers = [teacher.model_copy(update=change(teacher)) for teacher in self.teachers]
        return self.model_copy(update={"teachers": teachers})

    @property
    def does_without_labels(self) -> bool:
        """Does some teacher say what no label does? `gradient` pushes labels through it."""
        terms = [term for teacher in self.teachers for term in teacher.feature_terms]
        outputs = any(any(teacher.output.values()) for teacher in self.teachers)
        return self.soft > 0 and (outputs or any(term.method != "gradient" and term.weight != 0 for term in terms))

    @property
    def teaches_classes(self) -> bool:
        """Does the student learn from some teacher what is what?"""
        return self.soft > 0 and any(teacher.teaches_classes for teacher in self.teachers)
