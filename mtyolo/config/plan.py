"""The plan file: stages, what trains in each, and on which objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mtyolo.config.model import Positive, Strict

Share = Annotated[float, Field(ge=0)]


class StageConfig(Strict):
    """One stage. What it does not name in `train` is frozen: no gradient, no BatchNorm drift."""

    name: str
    objective: Literal["tasks", "align"] = "tasks"
    epochs: Annotated[int, Field(gt=0)] | None = None
    """Default: an equal share of the run's epochs that are left."""
    train: list[str] | Literal["all"] = "all"
    """Parts by name, for example [adapters, segment, detector.17]."""
    freeze: list[str] = []
    """Parts to take out of `train` again: {train: all, freeze: [detector]}."""
    lr_scale: dict[str, Share] = {}
    """Part -> factor of the learning rate."""
    tasks: list[Literal["detect", "segment", "keypoint"]] | None = None
    """Which tasks' losses count. Default: all that the model has."""
    augment: bool = True
    balance: str | None = None
    arguments: dict[str, Any] = {}


class PlanConfig(Strict):
    """A whole plan file."""

    balance: str = "fixed"
    task_weights: dict[Literal["detect", "segment", "keypoint"], Share] = {}
    stages: Annotated[list[StageConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> PlanConfig:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two stages are called {twice!r}; checkpoints and plots name stages: give each its own")
        return self


__all__ = ["PlanConfig", "Positive", "StageConfig"]
