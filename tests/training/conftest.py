"""A model and photos small enough to train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tiny_networks import THREE_TASKS, tiny_graph

from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.model import Model

SIZE = 64
NAMES = {0: "square", 1: "disc"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, so that runs agree to the bit."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """results.png takes as long as a run of ten pictures. Where it is looked at, a fixture of this name lets it be."""
    monkeypatch.setattr("mtyolo.training.records.run.plot_results", lambda rows, path: None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file: 10 training and 4 validation images of drawn shapes with boxes, masks and two keypoints."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 10), ("val", 4)):
        _draw_split(root, split, count)
    content = {
        "train": "train",
        "val": "val",
        "annotations": {"train": "train.json", "val": "val.json"},
        "names": NAMES,
        "kpt_shape": [2, 3],
        "flip_idx": [1, 0],
    }
    path = root / "shapes.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def blind(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn shapes, whose keypoints do not say what becomes of them in a mirror."""
    folder = tmp_path_factory.mktemp("blind")
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    del content["flip_idx"]
    names = {"categories": [{"id": 0, "name": "square", "keypoints": ["a", "b"]}, {"id": 1, "name": "disc"}]}
    for split in ("train", "val"):
        labels = json.loads((shapes.parent / f"{split}.json").read_text())
        (folder / f"{split}.json").write_text(json.dumps(labels | names))
    content["annotations"] = {split: str(folder / f"{split}.json") for split in ("train", "val")}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def _draw_split(root: Path, split: str, count: int) -> None:
    random = np.random.default_rng(len(split))
    (root / split).mkdir()
    images, annotations = [], []
    for number in range(count):
        picture = random.integers(90, 120, (SIZE, SIZE, 3), dtype=np.uint8)
        for kind in range(2):
            side = int(random.integers(12, 28))
            x, y = (int(value) for value in random.integers(0, SIZE - side, 2))
            colour = (255, 40, 40) if kind else (40, 40, 255)
            if kind:
                cv2.circle(picture, (x + side // 2, y + side // 2), side // 2, colour, -1)
            else:
                cv2.rectangle(picture, (x, y), (x + side, y + side), colour, -1)
            middle = y + side / 2
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    "keypoints": [x, middle, 2, x + side, middle, 2],
                    "num_keypoints": 2,
                }
            )
        cv2.imwrite(str(root / split / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
    categories = [
        {"id": number, "name": name, "keypoints": ["left", "right"], "skeleton": [[1, 2]]}
        for number, name in NAMES.items()
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def make_model(shapes: Path) -> Callable[[], Model]:
    """A new, always equal, tiny model with all three tasks."""

    def make() -> Model:
        torch.manual_seed(0)
        return build({"detector": {"graph": tiny_graph()}, "tasks": THREE_TASKS}, data=shapes)

    return make


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    """Three batches an epoch, the last one smaller."""
    return TrainConfig(epochs=2, imgsz=SIZE, batch=4, workers=0, device="cpu", warmup_epochs=0.5)
