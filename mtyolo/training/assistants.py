"""Teacher assistants of a plan: trained before the student, each a run in a folder of the student's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from accelerate.utils import set_seed

from mtyolo.assembly import build
from mtyolo.config.plan import AssistantConfig, PlanConfig, StageConfig
from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError, MtyoloError
from mtyolo.model import Model
from mtyolo.training.checkpoints import STATE, read_state
from mtyolo.training.processes import from_first
from mtyolo.training.run import Run
from mtyolo.training.stopping import Interrupted

FOLDER = "assistants"


class Train(Protocol):
    """A whole training on the student's data."""

    def __call__(
        self, model: Model | None, *, plan: PlanConfig, config: TrainConfig, out: Path, resume: Path | None
    ) -> Run: ...


@dataclass(frozen=True)
class Assistants:
    """Those of one run. folder: the student's, which is what goes on after an interruption."""

    student: Model
    folder: Path
    config: TrainConfig
    train: Train
    say: Callable[[str], None]
    trust: bool = False

    def teach(self, plan: PlanConfig) -> PlanConfig:
        """The plan with files in place of its assistants' names. What is there already is not trained again.

        Raises what a training raises.
        """
        weights: dict[str, str] = {}
        for assistant in plan.assistants:
            weights[assistant.name] = self._weights(assistant, taught_by(assistant.stages, weights))
        self.say("assistants are trained; the student's turn")
        return plan.model_copy(update={"stages": taught_by(plan.stages, weights)})

    def _weights(self, assistant: AssistantConfig, stages: list[StageConfig]) -> str:
        out = self.folder / FOLDER / assistant.name
        # The first process looks: another might find what that one has written since.
        done, begun = from_first(partial(_progress, out, len(stages)))
        if not done:
            self.say(f"assistant {assistant.name}: {'goes on' if begun else 'begins'}, in {out}")
            plan = PlanConfig(balance=assistant.balance, task_weights=assistant.task_weights, stages=stages)
            epochs = assistant.epochs or self.config.epochs
            config = self.config.model_copy(update={"epochs": epochs, "freeze_epochs": None})
            model = None if begun else self._model(assistant)
            try:
                self.train(model, plan=plan, config=config, out=out, resume=out if begun else None)
            except Interrupted as interrupted:
                raise Interrupted(self.folder, interrupted.signal_number) from None
        return from_first(lambda: str(Run(out).best.absolute()))

    def _model(self, assistant: AssistantConfig) -> Model:
        set_seed(self.config.seed)
        names, points = self.student.names, self.student.keypoints
        try:
            return build(assistant.model, weights=assistant.weights, names=names, points=points, trust=self.trust)
        except MtyoloError as error:
            raise ConfigError(f"plan: assistant {assistant.name!r}: {error}") from None


def _progress(out: Path, stages: int) -> tuple[bool, bool]:
    """Is the run in this folder done, has it begun?"""
    begun = (out / STATE).exists()
    return begun and read_state(out)["position"]["stage"] == stages, begun


def taught_by(stages: Sequence[StageConfig], weights: Mapping[str, str]) -> list[StageConfig]:
    """Stages with files in place of assistants' names."""
    found = []
    for stage in stages:
        if stage.distill is not None:
            teachers = [
                teacher.model_copy(update={"weights": weights.get(teacher.weights, teacher.weights)})
                for teacher in stage.distill.teachers
            ]
            stage = stage.model_copy(update={"distill": stage.distill.model_copy(update={"teachers": teachers})})
        found.append(stage)
    return found


__all__ = ["Assistants", "taught_by"]
