"""What a run is started with, in plain values, so that it can be resumed from its folder alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtyolo.config.data import DataConfig
from mtyolo.config.model import ModelConfig
from mtyolo.config.plan import AssistantConfig, PlanConfig, read_plan, with_files_beside
from mtyolo.config.training import TrainConfig
from mtyolo.data.sources import read_data
from mtyolo.distill.classes import only_numbered
from mtyolo.distill.teachers import Own
from mtyolo.errors import CheckpointError, ConfigError, MtyoloError, StoreError
from mtyolo.features.manifest import MANIFEST, read_manifest
from mtyolo.geometry import fitting_side
from mtyolo.model import Model
from mtyolo.resolution import resolve
from mtyolo.training.batches.splits import Data
from mtyolo.training.fresh import with_fresh_classes
from mtyolo.training.objectives.distilling import name_classes
from mtyolo.training.stopping import Interrupted

logger = logging.getLogger(__name__)

PROTECTIVE_PLAN, GENTLE_PLAN, PLAIN_PLAN = "freeze-then-unfreeze", "head-first", "all-at-once"
NEW_CLASSES_PLAN = "new-classes"
"""Without a plan: a detector with official weights is protected from what is fresh, or, where nothing is, moves gently;
one that knows none of the classes has to move; one without weights has nothing to lose."""


@dataclass(frozen=True)
class Settings:
    """Model, plan, configuration as json; data as an absolute path, or json where it was given as DataConfig."""

    model: str
    plan: str
    config: str
    data_path: str | None
    data_json: str | None
    features: str | None

    @classmethod
    def of_run(cls, saved: Mapping[str, Any], path: Path | str, features: str | Path | None = None) -> Settings:
        """Those that a run was started with. features: where its store is now, if it was moved.

        Raises CheckpointError where this version can not read them, StoreError where the store is not there, and
        ConfigError where the run has none.
        """
        try:
            settings = cls(**saved["settings"])
            settings.parsed()
            ModelConfig.model_validate_json(settings.model)
        except (KeyError, TypeError, ValueError) as error:  # pydantic's are ValueErrors
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: was written by another version of mtyolo: {reason}") from None
        return settings._with_store_at(features, path)

    def _with_store_at(self, features: str | Path | None, run: Path | str) -> Settings:
        if features is not None and self.features is None:
            raise ConfigError(f"{run}: was started on images and goes on with them; leave --features out")
        if features is not None:
            return replace(self, features=str(Path(features).absolute()))
        if self.features is not None and not (Path(self.features) / MANIFEST).is_file():
            raise StoreError(f"{self.features}: the store of {run} is not there; name its new folder with --features")
        return self

    def parsed(self) -> tuple[TrainConfig, PlanConfig]:
        return TrainConfig.model_validate_json(self.config), PlanConfig.model_validate_json(self.plan)

    def opened_data(self) -> Data:
        return self.data_path if self.data_path is not None else DataConfig.model_validate_json(self.data_json or "")


def settle(
    model: Model | None,
    data: Data | None,
    plan: str | Path | Mapping[str, Any] | PlanConfig | None,
    config: TrainConfig | None,
    features: str | Path | None,
    own: Own | None = None,
) -> Settings:
    """Settings of a new run. Where neither data nor model have names, a teacher names the model's classes.

    own: classes by name, and trust, for teachers' models. Raises ConfigError where model or data are missing.
    """
    if model is None or data is None:
        raise ConfigError("training needs a model and data; only a resumed run knows its own")
    chosen = with_whole_models(read_plan(plan if plan is not None else default_plan(model)))
    chosen = with_fresh_classes(chosen, model)
    if only_numbered(model.names) and read_data(data).names() == {}:
        name_classes(model, chosen, own)
    inline = isinstance(data, DataConfig)
    fitted = with_fitting_size(with_known_size(config or TrainConfig(), model, features), model)
    return Settings(
        model=model.config.model_dump_json(exclude_none=True),
        plan=chosen.model_dump_json(),
        config=fitted.model_dump_json(),
        data_path=None if inline else str(Path(str(data)).absolute()),
        data_json=data.model_dump_json() if isinstance(data, DataConfig) else None,
        features=None if features is None else str(Path(features).absolute()),
    )


def with_known_size(config: TrainConfig, model: Model, features: str | Path | None) -> TrainConfig:
    """The same, where no size was asked for, at that of the store, if one is read, else at that of an earlier
    training."""
    if "imgsz" in config.model_fields_set:
        return config
    size = model.usual_size if features is None else read_manifest(features).size
    return config.model_copy(update={"imgsz": size})


def with_fitting_size(config: TrainConfig, model: Model) -> TrainConfig:
    """The same with an image size that the network divides into cells, as validation and extraction take it."""
    size = fitting_side(config.imgsz, model.largest_stride)
    if size != config.imgsz:
        stride = model.largest_stride
        logger.warning("imgsz: %d becomes %d, a multiple of the largest stride, %d", config.imgsz, size, stride)
    return config.model_copy(update={"imgsz": size})


def default_plan(model: Model) -> str:
    if not model.config.detector.weights:
        return PLAIN_PLAN
    if len(model.fresh_classes) == len(model.names):
        return NEW_CLASSES_PLAN
    alone = model.tasks == ("detect",) and model.extractor is None
    return GENTLE_PLAN if alone and not model.fresh_classes else PROTECTIVE_PLAN


def with_whole_models(plan: PlanConfig) -> PlanConfig:
    """Assistants' models with all that their files say inside, and whole paths of teachers and of cached outputs, so
    that a run can be resumed from its folder alone, wherever one stands."""
    start, assistants = Path.cwd(), []
    plan = with_files_beside(plan, start / "plan.yaml")
    for assistant in plan.assistants:
        with naming(assistant):
            model = resolve(assistant.model, assistant.weights).model_dump(mode="json", exclude_none=True)
        assistants.append(assistant.caching_in(start).model_copy(update={"model": model, "weights": None}))
    return plan.caching_in(start).model_copy(update={"assistants": assistants})


@contextmanager
def naming(assistant: AssistantConfig) -> Iterator[None]:
    """Errors inside say whose they are."""
    try:
        yield
    except Interrupted:
        raise
    except MtyoloError as error:
        raise ConfigError(f"plan: assistant {assistant.name!r}: {error}") from None
