"""Data that a run is resumed with, where it was moved since the run began."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mtyolo.config.data import DataConfig
from mtyolo.errors import DataError
from mtyolo.training.batches.splits import Data
from mtyolo.training.settings import Settings


def with_data_at(settings: Settings, data: Data | None, run: Path | str) -> Settings:
    """A resumed run's settings with the data where it is now, so that the next time the run knows it by itself.

    data: None where nobody says anything else than at the start. Raises DataError where that place is empty.
    """
    if isinstance(data, DataConfig):
        return replace(settings, data_path=None, data_json=data.model_dump_json())
    if data is not None:
        return replace(settings, data_path=str(Path(data).absolute()), data_json=None)
    if settings.data_path is not None and not Path(settings.data_path).exists():
        raise DataError(f"{settings.data_path}: the data of {run} is not there; name its new place with --data")
    return settings


__all__ = ["with_data_at"]
