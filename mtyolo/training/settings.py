"""What a run is started with, in plain values, so that it can be resumed from its folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtyolo.assembly import resolve
from mtyolo.config.data import DataConfig
from mtyolo.config.plan import AssistantConfig, PlanConfig, read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError, MtyoloError
from mtyolo.model import Model
from mtyolo.training.splits import Data
from mtyolo.training.stopping import Interrupted

PROTECTIVE_PLAN, PLAIN_PLAN = "freeze-then-unfreeze", "all-at-once"
"""Without a plan: a detector with official weights is protected, one without has nothing to lose."""


@dataclass(frozen=True)
class Settings:
    """Model, plan, configuration as json; data as an absolute path, or json where it was given as DataConfig."""

    model: str
    plan: str
    config: str
    data_path: str | None
    data_json: str | None
    features: str | None

    def opened_data(self) -> Data:
        return self.data_path if self.data_path is not None else DataConfig.model_validate_json(self.data_json or "")


def settle(
    model: Model | None,
    data: Data | None,
    plan: str | Path | Mapping[str, Any] | PlanConfig | None,
    config: TrainConfig | None,
    features: str | Path | None,
) -> Settings:
    """Settings of a new run. Raises ConfigError where model or data are missing."""
    if model is None or data is None:
        raise ConfigError("training needs a model and data; only a resumed run knows its own")
    chosen = with_whole_models(read_plan(plan if plan is not None else default_plan(model)))
    inline = isinstance(data, DataConfig)
    return Settings(
        model=model.config.model_dump_json(exclude_none=True),
        plan=chosen.model_dump_json(),
        config=(config or TrainConfig()).model_dump_json(),
        data_path=None if inline else str(Path(str(data)).absolute()),
        data_json=data.model_dump_json() if isinstance(data, DataConfig) else None,
        features=None if features is None else str(Path(features).absolute()),
    )


def default_plan(model: Model) -> str:
    return PROTECTIVE_PLAN if model.config.detector.weights else PLAIN_PLAN


def with_whole_models(plan: PlanConfig) -> PlanConfig:
    """Assistants' models with all that their files say inside, so that a run can be resumed from its folder alone."""
    assistants = []
    for assistant in plan.assistants:
        with naming(assistant):
            model = resolve(assistant.model, assistant.weights).model_dump(mode="json", exclude_none=True)
        assistants.append(assistant.model_copy(update={"model": model, "weights": None}))
    return plan.model_copy(update={"assistants": assistants})


@contextmanager
def naming(assistant: AssistantConfig) -> Iterator[None]:
    """Errors inside say whose they are."""
    try:
        yield
    except Interrupted:
        raise
    except MtyoloError as error:
        raise ConfigError(f"plan: assistant {assistant.name!r}: {error}") from None
