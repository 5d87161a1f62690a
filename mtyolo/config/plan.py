"""The plan file: stages, what trains in each, and on which objective."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mtyolo.config.distill import DistillConfig
from mtyolo.config.model import resolve_beside, shipped_configs, whole_path
from mtyolo.config.reading import Document, nearest, read_yaml, validate
from mtyolo.config.strict import PathText, Positive, Strict
from mtyolo.config.training import AugmentConfig
from mtyolo.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

Factor = Annotated[float, Field(ge=0)]

STAGE_NAME = re.compile(r"[\w-]([\w. -]{0,48}[\w-])?")
"""Pictures are called after stages, and tables show them."""

TASK = Literal["detect", "segment", "keypoint"]

BALANCES = (
    *("fixed", "uncertainty", "dwa", "famo", "imtl-l", "random", "geometric-mean", "gradnorm"),
    *("pcgrad", "gradvac", "graddrop", "upgrad", "dualproj", "mgda", "imtl-g", "aligned-mtl", "config", "fairgrad"),
    "cagrad",
)
"""Words for `balance`; `mtyolo.balance` says what each does."""


def _stage_name(name: str) -> str:
    if not STAGE_NAME.fullmatch(name):
        raise ValueError(
            f"stages are called by at most 50 letters, digits, _ and -, with dots and spaces between them, got {name!r}"
        )
    return name


class StageConfig(Strict):
    """One stage. What it does not name in `train` is frozen: no gradient, no BatchNorm drift."""

    name: Annotated[str, AfterValidator(_stage_name)]
    objective: Literal["tasks", "align"] = "tasks"
    epochs: Positive | None = None
    """Default: by `share`."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the run's epochs. Default: an equal part of those that the other stages leave."""
    train: list[str] | Literal["all"] = "all"
    """Parts by name, for example [adapters, segment, detector.17]; those that the model lacks are left out."""
    freeze: list[str] = []
    """Parts to take out of `train` again: {train: all, freeze: [detector]}."""
    norms: Literal["train", "frozen"] | list[str] = "train"
    """frozen: BatchNorm layers of trained parts keep their statistics (small data drags them away). Or those of which
    parts do, for example [extractor, adapters]."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Default: the run's."""
    lr_scale: dict[str, Factor] = {}
    """Part -> factor of the learning rate; the innermost part that holds a weight decides."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """Default: the run's."""
    weight_decay: Factor | None = None
    """Default: the run's. AdamW's is of another scale than SGD's."""
    warmup_epochs: Factor | None = None
    """Default: the run's. With many `views` an epoch is long; in any case, a third of the stage is the most."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Default: the run's. Published recipes of distillation take 1.0."""
    tasks: Annotated[list[TASK], Field(min_length=1)] | None = None
    """Which tasks' losses count. Default: all that the model has."""
    augment: bool | AugmentConfig = True
    """false: letterbox only; or its own values, where those that are not named are the defaults, not the run's."""
    views: Positive = 1
    """Passes over the training images an epoch, each augmented anew."""
    balance: Literal[BALANCES] | None = None  # type: ignore[valid-type]
    """Default: the plan's."""
    distill: DistillConfig | None = None
    """Teachers, and what is learned from them."""
    align: Factor = 0.0
    """Weight of alignment beside the tasks' losses, so that few labels do not undo it. Without adapters, nothing."""
    arguments: dict[str, Any] = {}
    """Options of align: weights of the errors behind the frozen graph, `fused` and `maps`; default 0."""

    @model_validator(mode="after")
    def _arguments_are_of_align(self) -> StageConfig:
        if self.arguments and not self.aligns:
            raise ValueError(
                f"{next(iter(self.arguments))} is an option of align, and stage {self.name!r} does not align: give it "
                "objective: align or an align: weight, or leave arguments out"
            )
        return self

    @property
    def aligns(self) -> bool:
        """Does it need what the replaced layers give?"""
        return self.objective == "align" or self.align > 0


class Stages(Strict):
    """What a model is trained by."""

    balance: Literal[BALANCES] = "fixed"  # type: ignore[valid-type]
    task_weights: dict[TASK, Annotated[float, Field(gt=0)]] = {}
    """What a task's loss is multiplied by before balancing. Default: 1. A stage's `tasks` leave one out."""
    stages: Annotated[list[StageConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Stages:
        twice = _twice([stage.name for stage in self.stages])
        if twice:
            raise ValueError(f"two stages are called {twice!r}; checkpoints and plots name stages: give each its own")
        return self

    @property
    def teachers(self) -> list[str]:
        """The `weights` of all of them."""
        return [teacher.weights for stage in self.stages if stage.distill for teacher in stage.distill.teachers]

    def taught_by(self, weights: Mapping[str, str]) -> Self:
        """The same with other teachers: `weights` as they stand -> those to take."""
        return self._with_distill(lambda distill: distill.taught_by(weights))

    def caching_in(self, start: Path) -> Self:
        """The same with whole paths of the folders that outputs are kept in. start: where relative ones begin."""
        return self._with_distill(lambda distill: distill.caching_in(start))

    def _with_distill(self, change: Callable[[DistillConfig], DistillConfig]) -> Self:
        stages = []
        for stage in self.stages:
            if stage.distill is not None:
                stage = stage.model_copy(update={"distill": change(stage.distill)})
            stages.append(stage)
        return self.model_copy(update={"stages": stages})


class AssistantConfig(Stages):
    """A teacher assistant: a model between teacher and student in size, which learns from the one and then teaches the
    other. Mirzadeh et al. 2020, arXiv:1902.03393."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """What a teacher's `weights` call it."""
    model: PathText | dict[str, Any]
    """A model file, one that ships with mtyolo by its name, or its content; for the student's classes and points."""
    weights: PathText | None = None
    """An official checkpoint to begin from. Default: what the model file says."""
    epochs: Positive | None = None
    """Default: the run's."""


class PlanConfig(Stages):
    """A whole plan file."""

    assistants: list[AssistantConfig] = []
    """Trained one after the other before the first stage, each in a folder of the run."""

    @model_validator(mode="after")
    def _assistants_teach(self) -> PlanConfig:
        names = [assistant.name for assistant in self.assistants]
        twice = _twice(names)
        if twice:
            raise ValueError(f"two assistants are called {twice!r}; teachers are found by name: give each its own")
        for number, assistant in enumerate(self.assistants):
            early = next((name for name in assistant.teachers if name in names[number:]), None)
            if early:
                raise ValueError(f"assistant {assistant.name!r} learns from {early!r}, which is not trained before it")
            later = [*self.assistants[number + 1 :], self]
            if not any(assistant.name in learner.teachers for learner in later):
                raise ValueError(
                    f"assistant {assistant.name!r} teaches nobody: name it as the weights of a teacher, or leave it out"
                )
        return self


AnyPlan = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | PlanConfig


def with_files_beside(plan: PlanConfig, file: Path) -> PlanConfig:
    """Models and teachers that lie beside the plan's file, found from anywhere."""
    own = [assistant.name for assistant in plan.assistants]
    named = [weights for learner in (plan, *plan.assistants) for weights in learner.teachers if weights not in own]
    located = {weights: whole_path(weights, file, folders=True) for weights in named}
    assistants = []
    for assistant in plan.assistants:
        files = {key: getattr(assistant, key) for key in ("model", "weights")}
        places = {key: whole_path(name, file) for key, name in files.items() if isinstance(name, str)}
        assistants.append(assistant.model_copy(update=places).taught_by(located))
    return plan.model_copy(update={"assistants": assistants}).taught_by(located)


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def read_plan(plan: AnyPlan) -> PlanConfig:
    """A plan from a file, from the name of one that ships with mtyolo, or from its content, or its stages alone.

    Raises ConfigError, also for shares of more than a whole run; those of earlier versions' states go on as they were.
    """
    read, place = _read(plan)
    for learner in (read, *read.assistants):
        _refuse_more_than_all(learner, place)
    return read


def _refuse_more_than_all(learner: Stages, place: str) -> None:
    shares = {stage.name: stage.share for stage in learner.stages if stage.share is not None and stage.epochs is None}
    total = sum(shares.values())
    if total > 1.005:  # thirds and sixths are rounded by people
        whose = f"assistant {learner.name!r}: " if isinstance(learner, AssistantConfig) else ""
        raise ConfigError(
            f"{place}: {whose}the shares of {', '.join(shares)} add up to {total:.4g}, and 1 is the whole run: lower "
            "them, or give stages epochs of their own"
        )


def _read(plan: AnyPlan) -> tuple[PlanConfig, str]:
    """And what to call it in messages."""
    if isinstance(plan, PlanConfig):
        return plan, "plan"
    if isinstance(plan, Sequence) and not isinstance(plan, str):
        plan = {"stages": plan}
    if isinstance(plan, Mapping):
        return validate(PlanConfig, Document(Path("plan"), dict(plan), {})), "plan"
    if not isinstance(plan, str | Path):
        raise ConfigError(
            f"plan: expected a file, the name of a plan of mtyolo, or a list of stages, got {type(plan).__name__}"
        )
    for name in (str(plan), f"{plan}.yaml"):
        found = resolve_beside(name, Path("plan.yaml"))
        if found is not None:
            return with_files_beside(validate(PlanConfig, read_yaml(found)), found), str(found)
    shipped = [path.stem for path in sorted((shipped_configs() / "plans").glob("*.yaml"))]
    close = get_close_matches(Path(plan).stem, shipped, n=1, cutoff=0.5)
    raise ConfigError(f"{plan}: no such plan here or in mtyolo; {nearest(close[0] if close else plan, shipped)}")


__all__ = ["BALANCES", "AssistantConfig", "PlanConfig", "Positive", "StageConfig", "read_plan", "with_files_beside"]
