"""Options of a training run, with the values of the official recipe as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mtyolo.config.model import LARGEST_SEED, LARGEST_SIDE
from mtyolo.config.reading import Document, read_yaml, validate
from mtyolo.config.strict import Positive, Strict
from mtyolo.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Gain = Annotated[float, Field(ge=0)]


class AugmentConfig(Strict):
    """How training images vary. All zero: letterbox only."""

    mosaic: Fraction = 1.0
    """Probability of joining four images."""
    flip: Fraction = 0.5
    scale: Fraction = 0.5
    """Gain is drawn from 1 - scale to 1 + scale."""
    translate: Fraction = 0.1
    """Shift, as a fraction of the image."""
    hue: Fraction = 0.015
    saturation: Fraction = 0.7
    value: Fraction = 0.4


class LossGains(Strict):
    """Weights of the loss components. The first three are the official ones."""

    box: Gain = 0.05
    objectness: Gain = 1.0
    classes: Gain = 0.5
    """Scaled by classes / 80, as the official trainer does."""
    mask: Gain = 0.05
    """The official segment trainer weighs masks like boxes."""
    location: Gain = 0.03
    """ln(1 + e) of points is large at first, and pulls the shared layers with it: measured, 0.1 finds points worse."""
    heatmap: Gain = 0.05
    visibility: Gain = 0.02


class TrainConfig(Strict):
    """One training run."""

    epochs: Positive = 100
    imgsz: Annotated[int, Field(gt=0, le=LARGEST_SIDE)] = 640
    batch: Positive = 16
    """Images a step, over all processes."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.01
    final_lr: Fraction = 0.01
    """Fraction of lr at the end of a stage's cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.937
    weight_decay: Annotated[float, Field(ge=0)] = 0.0005
    warmup_epochs: Annotated[float, Field(ge=0)] = 3.0
    """Of each stage, at most a third of it."""
    ema_decay: Fraction = 0.9999
    """Of the weights' average, which is validated and saved: over 1 / (1 - decay) steps, at most a ninth of the run."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 10.0
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Clip each gradient to ± this, before the norm; published recipes of distillation take 1.0."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Positive = 1
    patience: Positive | None = None
    """End a stage after so many epochs without a better fitness. Default: never."""
    freeze_epochs: Positive | None = None
    """Epochs of the plan's first stage, in place of what the plan says."""
    val_every: Positive = 1
    """Validate every so many epochs, and after the last one of each stage."""
    workers: Annotated[int, Field(ge=0)] = 2
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]] = []
    """Where each epoch's numbers go besides results.csv, through accelerate."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    device: str = "auto"
    gains: LossGains = LossGains()
    augment: AugmentConfig = AugmentConfig()


def read_config(config: str | Path | Mapping[str, Any] | TrainConfig) -> TrainConfig:
    """A configuration from a file, or from its content. Raises ConfigError naming key and remedy."""
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, Mapping):
        return validate(TrainConfig, Document(Path("config"), dict(config), {}))
    if isinstance(config, str | Path):
        return validate(TrainConfig, read_yaml(config))
    raise ConfigError(
        f"config: expected a TrainConfig, a dictionary such as {{'epochs': 1}}, or a file, got {type(config).__name__}"
    )
