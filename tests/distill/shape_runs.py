"""Students, teachers and runs on drawn shapes of 64 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_students import tiny_model

from mtyolo.checkpoint import save_weights
from mtyolo.config.distill import DistillConfig
from mtyolo.config.training import TrainConfig
from mtyolo.data.creatures import CLASSES, KEYPOINTS
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.distill.objective import Distiller, make_distiller
from mtyolo.distill.teachers import Teacher
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.batches.splits import Data
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.run import Run
from mtyolo.training.train import train

SIDE = 64
NAMES = dict(enumerate(CLASSES))
POINTS = len(KEYPOINTS)
ALL_TASKS: dict[str, Any] = {"segment": {"prototypes": 4, "channels": 8}, "keypoint": {}}
SCALED = {"scaled": 1.0}

CERTAIN = 12.0
"""Added to a fresh head's logits of objectness and classes; it starts at -8 or so."""


def shape_model(seed: int = 0, *, names: Mapping[int, str] = NAMES, width: float = 0.05, **tasks: Any) -> Model:
    return tiny_model(dict(names), seed, points=POINTS, width=width, **tasks)


@torch.no_grad()
def certain(model: Model) -> Model:
    """The same, seeing an object in every cell: without objects a teacher has nothing to say about masks and points."""
    for layer in model.branches["detect"].layers:  # type: ignore[union-attr]
        layer.bias.view(len(model.anchors[0]), -1)[:, 4:] += CERTAIN
    return model


def teacher_file(folder: Path, seed: int = 1, **options: Any) -> str:
    return str(save_weights(certain(shape_model(seed, **options)), folder / f"teacher{seed}.safetensors"))


def shape_batch(shapes: Path) -> Batch:
    return next(iter(make_loader(Dataset(load_split(shapes, "train"), SIDE), 4, shuffle=False, workers=0, seed=0)))


def distiller_of(student: Model, *teachers: Mapping[str, Any], **options: Any) -> Distiller:
    config = DistillConfig.model_validate({"teachers": list(teachers), **options})
    return make_distiller(config, student, imgsz=SIDE, device=torch.device("cpu"))


def shape_config(epochs: int = 1, **options: Any) -> TrainConfig:
    return TrainConfig(epochs=epochs, imgsz=SIDE, batch=3, workers=0, device="cpu").model_copy(update=options)


def distilled(
    student: Model,
    data: Data,
    out: Path,
    distill: Mapping[str, Any],
    *,
    config: TrainConfig,
    judge: Judge | None = None,
    stage: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Run:
    plan = {"stages": [{"name": "d", "augment": False, "distill": distill, **(stage or {})}]}
    return train(student, data, plan=plan, config=config, out=out, judge=judge, progress=progress)


@dataclass
class Verdict:
    fitness: float

    def as_dict(self) -> dict[str, Any]:
        return {"fitness": self.fitness}


@dataclass
class Marks:
    """A validation with one mark for teachers and another for everyone else. `asked`: whom, on which tasks."""

    teacher: float
    student: float
    asked: list[tuple[Model | Teacher, tuple[str, ...]]] = field(default_factory=list)

    def __call__(self, model: Model | Teacher, split: Any, *, tasks: tuple[str, ...] = (), **options: Any) -> Verdict:
        self.asked.append((model, tasks))
        return Verdict(self.teacher if isinstance(model, Teacher) else self.student)
