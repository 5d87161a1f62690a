"""What a teacher is worth to a small student: every method against no teacher, over seeds, equal epochs.

    OMP_NUM_THREADS=1 python tests/benchmarks/distillation.py [--epochs 60] [--seeds 3] [--methods none,scaled]
    … --student narrow-mosaic | lite0 | lite0-layer4

The student is a YOLOv5n at half its width (0.125; 0.5 million parameters) from scratch, with or without mosaics; or,
from a feature store with 8 views a photo, adapters between an ImageNet EfficientNet-Lite0 and a frozen YOLOv5n, where
they replace all that the neck takes (`lite0`), or layer 4 alone (`lite0-layer4`). It sees the 80 training photos of
coco_mini at 320 pixels. The teacher is the official YOLOv5n, its outputs cached, except of mosaics, which never repeat.
All read the labels, too; the teachers' terms do not.
Results go to a file of JSON lines as they come; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader

from mtyolo.api import build, train
from mtyolo.config.model import shipped_configs
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.evaluation.precision import BoxPrecision
from mtyolo.extractors import Extractor
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.writer import extract
from mtyolo.model import Model, forward
from mtyolo.modes import evaluating
from mtyolo.structures import Batch
from mtyolo.tasks.detect.branch import BOX_VALUES
from mtyolo.tasks.instances import image_instances
from mtyolo.tasks.select import select

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE, BATCH = 320, 4
DRAWS = 10
"""Of the narrow student's augmentation, which then repeat, so that teachers are asked once for each; without a teacher
they do not."""
VIEWS = 8
"""Of each photo in the store of the Lite0 student."""
RECIPE: dict[str, Any] = {"optimizer": "adamw", "lr": 0.005}

OUTPUT = {"mse": 0.005, "kl": 10.0, "soft": 1.0, "scaled": 0.2}
FEATURES = {
    "fitnets": 1.0,
    "relative": 1.0,
    "spatial": 400.0,
    "channel": 50.0,
    "cwd": 5.0,
    "mgd": 2e-6,
    "gradient": 1.0,
}

ENTRIES: dict[str, dict[int, int]] = {"lite0": {4: 8, 6: 16, 9: 32}, "lite0-layer4": {4: 8}}
STUDENTS = ("narrow", "narrow-mosaic", *ENTRIES)


CACHE = {"narrow": DRAWS, "narrow-mosaic": False}
"""Other students look at stored views, of which each is asked for once."""

SIX = [4, 6, 9, 17, 20, 23]
"""What the neck takes, and what it gives."""
FOUR = [2, 4, 6, 9]
"""The backbone's: where eighty photos say most, each having many small parts."""

METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    **{name: {"output": {name: weight}} for name, weight in OUTPUT.items()},
    **{name: {"features": [{"method": name, "weight": weight}]} for name, weight in FEATURES.items()},
    "per-level": {"features": "per-level"},
    "kl+relative at 4 layers": {
        "output": {"kl": 10.0},
        "features": [{"method": "relative", "layers": FOUR, "weight": 0.3}],
    },
    "kl+cwd": {"output": {"kl": 10.0}, "features": [{"method": "cwd", "weight": 5.0}]},
    "relative at 6 layers": {"features": [{"method": "relative", "layers": SIX}]},
    "scaled+relative at 6 layers": {"output": {"scaled": 0.2}, "features": [{"method": "relative", "layers": SIX}]},
    "scaled+relative at 6 layers+cwd": {
        "output": {"scaled": 0.2},
        "features": [{"method": "relative", "layers": SIX}, {"method": "cwd", "weight": 5.0}],
    },
}

METHODS |= {
    f"pooled {name}": (METHODS[name] or {}) | {"pool": 2}
    for name in ("cwd", "relative at 6 layers", "kl+cwd", "scaled+relative at 6 layers")
}
"""Feature maps by means of four positions."""
METHODS |= {
    f"mgd pooled by {pool}": {"features": [{"method": "mgd", "weight": FEATURES["mgd"]}], "pool": pool}
    for pool in (2, 4)
}


def test_data() -> Path:
    return Path(os.environ.get("MTYOLO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def data_file(folder: Path) -> Path:
    """coco_mini with boxes only."""
    root = test_data() / "coco_mini"
    names = yaml.safe_load((root / "coco_mini.yaml").read_text())["names"]
    labels = {split: f"annotations/instances_{split}.json" for split in ("train", "val")}
    content = {"path": str(root), "train": "images/train", "val": "images/val", "annotations": labels, "names": names}
    path = folder / "coco_mini.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def student(data: Path, seed: int, kind: str = "narrow", *, store: Path | None = None) -> Model:
    torch.manual_seed(seed)
    if kind in ENTRIES:
        return build(lite0_config(kind), data=data, features=store)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text()) | {"width_multiple": 0.125}
    return build({"detector": {"graph": graph}}, data=data)


def lite0_config(kind: str = "lite0") -> dict[str, Any]:
    weights = test_data() / "weights"
    extractor = {
        "name": "timm/tf_efficientnet_lite0",
        "weights": str(weights / "tf_efficientnet_lite0.safetensors"),
        "strides": [8, 16, 32],
    }
    detector = {"graph": "yolov5n.yaml", "weights": str(weights / "yolov5n.pt"), "entry": ENTRIES[kind]}
    return {"extractor": extractor, "adapters": {"type": "fusion", "depth": 2}, "detector": detector}


def extracted(data: Path, folder: Path) -> Path:
    """The store of Lite0's features; what is there already is not made again."""
    extractor = build(lite0_config(), data=data).extractor
    assert isinstance(extractor, Extractor)
    splits = [load_split(data, name) for name in ("train", "val")]
    extract(extractor.eval(), splits, folder / "lite0", SIZE, ExtractOptions(batch=BATCH, views=VIEWS))
    return folder / "lite0"


def stage(method: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {"narrow": {"augment": {"mosaic": 0}}, "narrow-mosaic": {}}
    recipe = {"name": "train", **RECIPE, **own.get(kind, {"train": ["adapters"]})}
    if method is None:
        return recipe
    teacher = {"weights": str(test_data() / "weights" / "yolov5n.pt"), "cache": CACHE.get(kind, True)} | method
    return recipe | {"distill": {"teachers": [teacher], "check": False}}


def fingerprint(name: str, kind: str) -> str:
    """Tells results of one recipe from those of another."""
    return hashlib.sha256(json.dumps(stage(METHODS[name], kind), sort_keys=True).encode()).hexdigest()[:8]


def run(name: str, seed: int, epochs: int, folder: Path, kind: str) -> dict[str, Any]:
    """One training; its last epoch's metrics."""
    method, started = METHODS[name], time.time()
    plan = {"stages": [stage(method, kind)]}
    config = TrainConfig(
        epochs=epochs,
        imgsz=SIZE,
        batch=BATCH,
        workers=0,
        device="cpu",
        seed=seed,
        val_every=epochs,
        warmup_epochs=1,
    )
    data = data_file(folder)
    store = extracted(data, folder) if kind in ENTRIES else None
    model = student(data, seed, kind, store=store)
    with tempfile.TemporaryDirectory() as out:
        done = train(model, data, plan=plan, config=config, out=out, features=store, progress=False)
    last = done.results[-1]
    precision = {key: last[f"detect/{key}"] for key in ("AP", "AP50")}
    precision["objects"] = object_precision(model, load_split(data, "val"), store)
    settings = {"method": name, "seed": seed, "epochs": epochs, "student": kind}
    return settings | precision | {"seconds": round(time.time() - started)}


def object_precision(model: Model, split: Split, store: Path | None) -> float:
    """Average precision of boxes whatever they are called: 337 objects of one class are judged with far less luck than
    57 classes of six objects each."""
    loader = stored(split, store) if store else photos(split)
    judge = BoxPrecision({0: "object"})
    with evaluating(model):
        for batch in loader:
            outputs = forward(model, batch)
            decoded = model.decode(outputs)
            one = torch.cat((decoded[..., :BOX_VALUES], decoded[..., BOX_VALUES:].amax(-1, keepdim=True)), -1)
            for number, kept in enumerate(select(one, confidence=0.001, iou=0.6)):
                record = split.records[int(batch.indices[number])]
                labels = replace(record.labels, classes=np.zeros_like(record.labels.classes))
                found = image_instances(outputs, number, kept, (SIZE, SIZE), batch.letterboxes[number])
                judge.add(found, replace(record, labels=labels))
    return judge.compute().ap


def stored(split: Split, store: Path) -> DataLoader[Batch]:
    return make_store_loader(FeatureStore.open(store), split, BATCH, augment=None, shuffle=False, seed=0)


def photos(split: Split) -> DataLoader[Batch]:
    return make_loader(Dataset(split, SIZE, None), BATCH, shuffle=False, workers=0, seed=0)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | AP x 1000, each seed | mean | spread | times no teacher | objects, each seed | mean |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    base = statistics.mean(row["AP"] for row in by_method["none"]) if "none" in by_method else float("nan")
    for name, found in by_method.items():
        values = [row["AP"] for row in found]
        mean, spread = statistics.mean(values), max(values) - min(values)
        each = ", ".join(f"{value * 1000:.1f}" for value in values)
        objects = ", ".join(f"{row['objects'] * 1000:.1f}" for row in found)
        whole = statistics.mean(row["objects"] for row in found)
        ratio = mean / base if base else float("inf")
        numbers = f"{mean * 1000:.1f} | {spread * 1000:.1f} | {ratio:.1f} | {objects} | {whole * 1000:.1f}"
        lines.append(f"| {name} | {each} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--student", choices=STUDENTS, default=STUDENTS[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"), help="results and cached outputs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    kind = options.student
    for seed in range(options.seeds):
        for name in options.methods.split(","):
            key = {
                "method": name,
                "seed": seed,
                "epochs": options.epochs,
                "student": kind,
                "recipe": fingerprint(name, kind),
            }
            if not any(key.items() <= row.items() for row in rows):
                rows.append(run(name, seed, options.epochs, options.folder, kind) | key)
                print(rows[-1], flush=True)
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    asked = [row for row in rows if row["epochs"] == options.epochs and row["student"] == kind]
    print(table([row for row in asked if row.get("recipe") == fingerprint(row["method"], kind)]))


if __name__ == "__main__":
    main()
