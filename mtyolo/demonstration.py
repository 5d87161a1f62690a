"""The whole in a few minutes: drawn data, a frozen ImageNet extractor, three tasks, pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from accelerate.utils import set_seed

from mtyolo.api import build, train
from mtyolo.checkpoint import load
from mtyolo.config.training import AugmentConfig, LossGains, TrainConfig
from mtyolo.data.shapes import make_shapes
from mtyolo.data.split import load_split
from mtyolo.device import find_device
from mtyolo.drawing import save_image
from mtyolo.evaluation.metrics import Metrics
from mtyolo.evaluation.pictures import comparison
from mtyolo.evaluation.validate import validate
from mtyolo.prediction.predict import predict

MODEL, PLAN = "shapes-lite0.yaml", "demo"
TRAINING_IMAGES, VALIDATION_IMAGES = 160, 40
DRAWN_SIZE, TRAINED_SIZE = 320, 224
"""Sides in pixels: pictures are drawn for people, and trained small for two CPU cores."""
PICTURES = 6
LEAST_SCORE = 0.4
"""Of what is drawn in pictures."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demonstration leaves."""

    metrics: Metrics
    weights: Path
    labels: Path  # picture of a training batch with its labels
    comparison: Path  # picture of truth beside prediction
    predictions: list[Path]


def demo_config(epochs: int, seed: int, device: str) -> TrainConfig:
    """For a fresh neck and few steps: AdamW, no mosaic, twice the usual weight on where keypoints are."""
    return TrainConfig(
        epochs=epochs,
        imgsz=TRAINED_SIZE,
        batch=8,
        optimizer="adamw",
        lr=0.003,
        val_every=epochs,
        workers=0,
        seed=seed,
        device=device,
        gains=LossGains(location=0.2),
        augment=AugmentConfig(mosaic=0, flip=0.5, scale=0.1, translate=0.05, hue=0, saturation=0.2, value=0.2),
    )


def demonstrate(
    out: Path | None = None,
    *,
    epochs: int = 25,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Demonstration:
    """Draw a data set, train on it with a frozen extractor, judge on pictures that were not trained on.

    out: by default the first of runs/demo, runs/demo2, … that is not there. Raises ConfigError for a device that is not
    there, before anything is drawn.
    """
    find_device(device)
    out = out or _free_folder()
    say(f"drawing {TRAINING_IMAGES + VALIDATION_IMAGES} pictures with boxes, masks and keypoints …")
    data = make_shapes(out / "shapes", TRAINING_IMAGES, VALIDATION_IMAGES, DRAWN_SIZE, seed)
    say("training YOLOv5n on features of a frozen ImageNet EfficientNet-Lite0 …")
    set_seed(seed)
    run = train(
        build(MODEL, data=data), data, plan=PLAN, config=demo_config(epochs, seed, device), out=out / "training"
    )
    say("judging and drawing …")
    model = load(run.best)
    val = load_split(data, "val")
    side_by_side = comparison(model, val, confidence=LEAST_SCORE)
    results = predict(model, [record.path for record in val.records[:PICTURES]], confidence=LEAST_SCORE)
    return Demonstration(
        metrics=validate(model, val),
        weights=run.best,
        labels=run.out / "train_batch.jpg",
        comparison=save_image(side_by_side, out / "truth_and_prediction.jpg"),
        predictions=[result.save(out / "predictions" / f"{number}.jpg") for number, result in enumerate(results, 1)],
    )


def _free_folder() -> Path:
    folders = (Path("runs") / f"demo{number if number > 1 else ''}" for number in count(1))
    return next(folder for folder in folders if not folder.exists())
