"""What a plan asks of a model, held against it without data and without the files of teachers: for who only looks."""

from __future__ import annotations

from pathlib import Path

import torch

from mtyolo.config.model import resolve_beside
from mtyolo.config.plan import PlanConfig, Stages
from mtyolo.model import Model
from mtyolo.original_layers import replaced_weights
from mtyolo.training.objectives.alignment import make_align
from mtyolo.training.stages import Stage, aligns, lr_scales


def check_stage(stage: Stage, model: Model) -> None:
    """What training would refuse when it makes the stage. The model is frozen as the stage says.

    Raises ConfigError for parts that no model has, and for alignment of a model that has nothing to align to.
    """
    lr_scales(model, stage)
    if aligns(stage, model):
        replaced_weights(model)  # whose file a feature store with targets does not need
        make_align(model, stage.config.arguments, torch.device("cpu"), stored=True)  # nothing is loaded for it


def missing_teacher(learner: Stages, plan: PlanConfig) -> str | None:
    """The first teacher of the plan, or of one of its assistants, that is neither a file, a folder nor an assistant."""
    trained = [assistant.name for assistant in plan.assistants]
    return next((weights for weights in learner.teachers if weights not in trained and not _is_there(weights)), None)


def _is_there(weights: str) -> bool:
    return Path(weights).exists() or resolve_beside(weights, Path("plan.yaml")) is not None


__all__ = ["check_stage", "missing_teacher"]
