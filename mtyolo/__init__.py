"""Multi-task YOLOv5 on features.

The names below are imported when they are first used: `import mtyolo` itself loads no torch and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtyolo.api import export as export
    from mtyolo.api import train as train
    from mtyolo.api import validate as validate
    from mtyolo.checkpoint import load as load
    from mtyolo.checkpoint import save_weights as save_weights
    from mtyolo.config.training import TrainConfig as TrainConfig
    from mtyolo.errors import CheckpointError as CheckpointError
    from mtyolo.errors import ConfigError as ConfigError
    from mtyolo.errors import DataError as DataError
    from mtyolo.errors import MtyoloError as MtyoloError
    from mtyolo.errors import StoreError as StoreError
    from mtyolo.model import Model as Model
    from mtyolo.opening import build as build
    from mtyolo.opening import open_model as open_model
    from mtyolo.prediction.predict import predict as predict
    from mtyolo.structures import Detections as Detections
    from mtyolo.structures import Level as Level
    from mtyolo.structures import Outputs as Outputs
    from mtyolo.structures import Targets as Targets
    from mtyolo.training.objectives.tasks import losses as losses

    __version__: str

_HOMES = {
    "CheckpointError": "mtyolo.errors",
    "ConfigError": "mtyolo.errors",
    "DataError": "mtyolo.errors",
    "Detections": "mtyolo.structures",
    "Level": "mtyolo.structures",
    "Model": "mtyolo.model",
    "MtyoloError": "mtyolo.errors",
    "Outputs": "mtyolo.structures",
    "StoreError": "mtyolo.errors",
    "Targets": "mtyolo.structures",
    "TrainConfig": "mtyolo.config.training",
    "build": "mtyolo.opening",
    "export": "mtyolo.api",
    "load": "mtyolo.checkpoint",
    "losses": "mtyolo.training.objectives.tasks",
    "open_model": "mtyolo.opening",
    "predict": "mtyolo.prediction.predict",
    "save_weights": "mtyolo.checkpoint",
    "train": "mtyolo.api",
    "validate": "mtyolo.api",
}
"""Public name -> the module that defines it."""

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mtyolo")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mtyolo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
