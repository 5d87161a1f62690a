"""A tiny extractor and tiny data sets."""

from __future__ import annotations

import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from mtyolo.config.model import shipped_configs
from mtyolo.data.split import load_split
from mtyolo.extractors.base import Extractor
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.writer import extract
from mtyolo.structures import Level

SIZE = 64

OWN_EXTRACTOR = """
import torch
from mtyolo.extractors import Extractor
from mtyolo.structures import Level

class Frozen(Extractor):
    def __init__(self, seed=0):
        super().__init__()
        self.levels = (Level(8, 6), Level(16, 8), Level(32, 12))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolutions = torch.nn.ModuleList(
                torch.nn.Sequential(
                    torch.nn.Conv2d(3, level.channels, level.stride, level.stride),
                    torch.nn.BatchNorm2d(level.channels),
                )
                for level in self.levels
            )

    def forward(self, images):
        return {level.stride: layer(images) for level, layer in zip(self.levels, self.convolutions)}
"""


class TinyExtractor(Extractor):
    """One strided convolution a level: what a cell holds depends on the pixels of that cell alone."""

    levels = (Level(8, 6), Level(16, 8), Level(32, 12))

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.identity = {"name": "tiny", "weights": f"seed {seed}", "normalisation": "none"}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(3, level.channels, level.stride, level.stride) for level in self.levels
            )

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return {level.stride: layer(images) for level, layer in zip(self.levels, self.convolutions, strict=True)}


def make_images(folder: Path, count: int) -> Path:
    """A data file of random pictures of different shapes, each with one box and two keypoints."""
    random = np.random.default_rng(0)
    for name in ("images/train", "labels/train", "labels-pose/train"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        height, width = (int(side) for side in random.integers(40, 100, 2))
        coarse = random.integers(0, 255, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"images/train/{number:04d}.png"), cv2.resize(coarse, (width, height)))
        box = "0.4 0.6 0.5 0.3"
        (folder / f"labels/train/{number:04d}.txt").write_text(f"0 {box}\n")
        (folder / f"labels-pose/train/{number:04d}.txt").write_text(f"0 {box} 0.2 0.5 2 0.6 0.7 2\n")
    content = {
        "path": str(folder),
        "train": "images/train",
        "names": ["thing"],
        "kpt_shape": [2, 3],
        "flip_idx": [1, 0],
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


class SlowExtractor(TinyExtractor):
    """Slow enough to be killed at every point of its work."""

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        time.sleep(0.002)
        return super().forward(images)


def extract_slowly(data: Path, folder: Path, started: Event) -> None:
    """In a process of its own."""
    split = load_split(data, "train")
    started.set()
    extract(SlowExtractor(), [split], folder, SIZE, ExtractOptions(batch=2, dtype="fp32"))


def write_own_extractor(folder: Path) -> None:
    """A module that a model file names as own_extractor:Frozen."""
    (folder / "own_extractor.py").write_text(OWN_EXTRACTOR)


def own_extractor_model(seed: int = 0) -> dict[str, Any]:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    return {
        "extractor": {"name": "own_extractor:Frozen", "weights": "none", "arguments": {"seed": seed}},
        "detector": {"graph": graph | {"width_multiple": 0.05, "depth_multiple": 0.1}},
        "tasks": {"detect": {}, "keypoint": {}},
    }
