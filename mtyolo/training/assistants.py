"""Teacher assistants of a plan: trained before the student, each a run in a folder of the student's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from accelerate.utils import set_seed

from mtyolo.assembly import build
from mtyolo.checkpoint import save_weights
from mtyolo.config.model import ModelConfig
from mtyolo.config.plan import AssistantConfig, PlanConfig, Stages
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.distill.objective import make_distiller
from mtyolo.errors import ConfigError, MtyoloError
from mtyolo.model import Model
from mtyolo.training.batches.splits import Data, with_lessons
from mtyolo.training.batches.unlabelled import refuse_unlabelled
from mtyolo.training.objectives.distilling import refuse
from mtyolo.training.plan_checks import check_stage, missing_teacher
from mtyolo.training.processes import from_first, processes
from mtyolo.training.records.checkpoints import STATE, random_states, read_state, set_random_states
from mtyolo.training.records.run import ASSISTANTS, Run
from mtyolo.training.settings import naming
from mtyolo.training.stages import Stage, freeze, plan_stages
from mtyolo.training.state import RunState, interrupted
from mtyolo.training.stopping import Interrupted


class Train(Protocol):
    """A whole training on the student's data."""

    def __call__(
        self, model: Model | None, *, plan: PlanConfig, config: TrainConfig, out: Path, resume: Path | None
    ) -> Run: ...


@dataclass(frozen=True)
class Assistants:
    """Those of one run. state: the student's. split: to train on, whole; of `data`. train: a whole training on it.
    own: classes by name, and trust, as `build` takes them."""

    state: RunState
    split: Split
    data: Data
    config: TrainConfig
    train: Train
    say: Callable[[str], None]
    own: Mapping[str, Any] = field(default_factory=dict)

    def teach(self, plan: PlanConfig, *, stored: bool, resumed: bool) -> PlanConfig:
        """The plan with files in place of its assistants' names. What is there already is not trained again.

        The student's state is saved first, so that its folder is what goes on after an interruption.
        stored: does the student read a feature store? Raises what a training raises.
        """
        random, weights = random_states(), dict[str, str]()
        if not resumed:
            self._check(plan, stored=stored)
            set_random_states(random)
            from_first(self.state.save)
        for assistant in plan.assistants:
            with naming(assistant):
                weights[assistant.name] = self._weights(assistant.taught_by(weights))
        self.say("assistants are trained; the student's turn")
        set_random_states(random)
        return plan.taught_by(weights)

    def _check(self, plan: PlanConfig, *, stored: bool) -> None:
        """What can be known before hours are spent, of the student's stages, too: assistants stand in for themselves
        as they are before they have learned. Raises ConfigError."""
        weights = dict[str, str]()
        with TemporaryDirectory(dir=self.state.run.out) as folder:
            for assistant in plan.assistants:
                with naming(assistant):
                    model = self._model(assistant)
                    stages = plan_stages(_plan_of(assistant), self._config(assistant), model)
                    refuse_unlabelled(stages, model, with_lessons((self.split, None), model)[0], self.data)
                    _check_teachers(assistant, self.config, stored=False, known=plan)
                    self._try(stages, model, weights)
                    weights[assistant.name] = str(save_weights(model, Path(folder) / f"{assistant.name}.safetensors"))
            _check_teachers(plan, self.config, stored=stored, known=plan)
            self._try(plan_stages(plan, self.config, self.state.model, self.split.taught), self.state.model, weights)

    def _try(self, stages: Sequence[Stage], model: Model, weights: Mapping[str, str]) -> None:
        """Make the teachers of a learner and forget them. weights: of those that are assistants, by name."""
        for stage in stages:
            freeze(model, stage)
            check_stage(stage, model)
            distill = stage.config.distill
            if distill is None:
                continue
            try:
                make_distiller(
                    distill.taught_by(weights).without_cache(),
                    model,
                    imgsz=self.config.imgsz,
                    device=model.anchors.device,
                    own=self.own,
                )
            except MtyoloError as error:
                place = f"plan: stage {stage.name!r}: {error}"
                for name, path in weights.items():
                    place = place.replace(path, name)
                raise ConfigError(place) from None

    def _weights(self, assistant: AssistantConfig) -> str:
        out = self.state.run.out / ASSISTANTS / assistant.name
        # The first process looks: another might find what that one has written since.
        done, begun = from_first(partial(_progress, out, len(assistant.stages)))
        if not done:
            self.say(f"assistant {assistant.name}: {'goes on' if begun else 'begins'}, in {out}")
            plan, config = _plan_of(assistant), self._config(assistant)
            model = None if begun else self._model(assistant)
            try:
                self.train(model, plan=plan, config=config, out=out, resume=out if begun else None)
            except Interrupted as stopped:
                raise interrupted(self.state, stopped.signal_number) from None
        return from_first(lambda: str(Run(out).best.absolute()))

    def _model(self, assistant: AssistantConfig) -> Model:
        set_seed(self.config.seed)
        whole = ModelConfig.model_validate(assistant.model)  # the run's settings have what its files say
        names, points = self.state.model.names, self.state.model.keypoints or self.split.points
        return build(whole, names=names, points=points, **self.own)

    def _config(self, assistant: AssistantConfig) -> TrainConfig:
        epochs = assistant.epochs or self.config.epochs
        return self.config.model_copy(update={"epochs": epochs, "freeze_epochs": None})


def _plan_of(assistant: AssistantConfig) -> PlanConfig:
    return PlanConfig(balance=assistant.balance, task_weights=assistant.task_weights, stages=assistant.stages)


def _check_teachers(learner: Stages, config: TrainConfig, *, stored: bool, known: PlanConfig) -> None:
    for stage in learner.stages:
        refuse(stage, config, stored=stored, processes=processes())
    if weights := missing_teacher(learner, known):
        raise ConfigError(f"plan: teacher {weights}: no such file, and no assistant of this name")


def _progress(out: Path, stages: int) -> tuple[bool, bool]:
    """Is the run in this folder done, has it begun?"""
    begun = (out / STATE).exists()
    return begun and read_state(out)["position"]["stage"] == stages, begun


__all__ = ["Assistants"]
