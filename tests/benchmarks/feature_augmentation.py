"""Do mirrors and mosaics of features help? Does int8 harm? The same short training with each, over three seeds.

python tests/benchmarks/feature_augmentation.py [--epochs 30] [--seeds 3] [--dtype int8]

A frozen Lite0 feeds a YOLOv5n from a store; adapters and detector train. AP is that of boxes on coco_mini's 40
validation photos, with the weights of the last epoch. Needs coco_mini and the weights beside it (MTYOLO_TEST_DATA).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
import yaml

from mtyolo.api import build, open_model
from mtyolo.config.data import DataConfig
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.split import load_split
from mtyolo.evaluation.validate import validate
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.manifest import DTYPES
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.standin import source_of
from mtyolo.features.writer import extract
from mtyolo.training.train import train

DATA = Path(os.environ.get("MTYOLO_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SIZE = 320
FLIP_IDX = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
WAYS = {
    "nothing": (0.0, 0.0),
    "flip": (0.4, 0.0),
    "mosaic": (0.0, 0.4),
    "flip and mosaic": (0.4, 0.4),
}
"""Name -> probability of a mirror, of a mosaic."""


def coco_mini() -> DataConfig:
    root = DATA / "coco_mini"
    kinds = ("instances", "person_keypoints")
    return DataConfig(
        path=str(root),
        train="images/train",
        val="images/val",
        annotations={split: [f"annotations/{kind}_{split}.json" for kind in kinds] for split in ("train", "val")},  # type: ignore[misc]
        names=yaml.safe_load((root / "coco_mini.yaml").read_text())["names"],
        kpt_shape=(17, 3),
        flip_idx=FLIP_IDX,
    )


def model_file() -> dict[str, object]:
    weights = DATA / "weights"
    return {
        "extractor": {
            "name": "timm/tf_efficientnet_lite0",
            "weights": str(weights / "tf_efficientnet_lite0.safetensors"),
        },
        "adapters": {"type": "conv", "depth": 2},
        "detector": {"graph": "yolov5n.yaml", "weights": str(weights / "yolov5n.pt")},
        "tasks": {"detect": {}},
    }


def run(store: Path, data: DataConfig, augment: AugmentConfig, seed: int, options: argparse.Namespace) -> float:
    """Box AP after the last epoch."""
    torch.manual_seed(seed)
    config = TrainConfig(
        epochs=options.epochs,
        imgsz=SIZE,
        batch=16,
        optimizer="adamw",
        lr=options.lr,
        warmup_epochs=2,
        ema_decay=0.99,
        workers=0,
        seed=seed,
        device="cpu",
        augment=augment,
    )
    plan = {"stages": [{"name": "all", "train": ["adapters", "detector"], "lr_scale": {"detector": 0.1}}]}
    model = build(model_file(), data=data, features=store)
    with tempfile.TemporaryDirectory() as out:
        done = train(model, data, plan=plan, config=config, out=out, features=store, progress=False)
        trained = open_model(done.last, features=store)
    split = load_split(data, "val")
    batches = make_store_loader(FeatureStore.open(store), split, 8, augment=None, shuffle=False, seed=0)
    return validate(trained, split, size=SIZE, loader=batches).tasks["detect"].ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    options = parser.parse_args()
    data = coco_mini()
    print(f"{options.epochs} epochs at {SIZE} px, stored as {options.dtype}")
    print("| way | AP of each seed | mean |\n| --- | --- | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        model = build(model_file(), data=data)
        assert model.extractor is not None
        assert model.config.extractor is not None
        splits = [load_split(data, split) for split in ("train", "val")]
        stored = ExtractOptions(dtype=options.dtype, source=source_of(model.config.extractor))
        extract(model.extractor, splits, folder, SIZE, stored)  # type: ignore[arg-type]
        for way in options.ways:
            flip, mosaic = WAYS[way]
            augment = AugmentConfig(flip=flip, mosaic=mosaic, scale=0, translate=0, hue=0, saturation=0, value=0)
            found = [run(Path(folder), data, augment, seed, options) for seed in range(options.seeds)]
            listed = ", ".join(f"{value:.4f}" for value in found)
            print(f"| {way} | {listed} | {statistics.mean(found):.4f} |", flush=True)


if __name__ == "__main__":
    main()
