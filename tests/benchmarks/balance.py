"""Several tasks in one network against a network for each: every word of `balance`, over seeds, equal epochs.

    OMP_NUM_THREADS=1 python tests/benchmarks/balance.py [--epochs 8] [--seeds 0 1 2] [--methods fixed] [--device cpu]

The official YOLOv5n with fresh mask and keypoint branches, all of it trained on the 80 photos of coco_mini at 320
pixels; judged on its 40 validation photos with the weights of the last epoch. Beside boxes, a network "for masks" has
the detect and the segment branch, one "for keypoints" detect and keypoint: masks and keypoints of nothing can not be
judged. Metrics: box AP, mask AP, and for keypoints the mean OKS, as their AP is close to zero after so few photos.
Delta m is the mean over tasks of the relative gain over the network for that task (Maninis et al. 2019,
arXiv:1904.08918), seed by seed.
Results go to a file of JSON lines as they come; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from mtyolo.api import build, train
from mtyolo.balance import AGGREGATORS, SCALARIZERS
from mtyolo.config.data import DataConfig
from mtyolo.config.training import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTYOLO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
SIZE, BATCH = 320, 8
FLIP_IDX = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
METRICS = {"detect": "detect/AP", "segment": "segment/AP", "keypoint": "keypoint/OKS"}
ALONE = {
    "only detect": ("detect",),
    "only segment": ("detect", "segment"),
    "only keypoint": ("detect", "keypoint"),
}
"""The network for each task, named after it -> its branches."""
WORDS = ("gradnorm", *SCALARIZERS, *AGGREGATORS)
STAGE = {
    "name": "joint",
    "norms": "frozen",
    "optimizer": "adamw",
    "lr": 0.005,
    "lr_scale": {"detector": 0.005},
    "augment": {"mosaic": 0.3, "scale": 0.4},
}
"""Enough for the shared layers to move, so that balancing has something to do; and to forget, so that it has to."""


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


def run(name: str, seed: int, epochs: int, device: str = "cpu") -> dict[str, Any]:
    """One training; the metrics of its last epoch, and its seconds."""
    data, branches = coco_mini(), ALONE.get(name, tuple(METRICS))
    torch.manual_seed(seed)
    detector = {"graph": "yolov5n.yaml", "weights": str(DATA / "weights" / "yolov5n.pt")}
    model = build({"detector": detector, "tasks": {branch: {} for branch in branches}}, data=data)
    plan = {"balance": "fixed" if name in ALONE else name, "stages": [STAGE]}
    config = TrainConfig(epochs=epochs, imgsz=SIZE, batch=BATCH, workers=0, device=device, seed=seed, val_every=epochs)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        last = train(model, data, plan=plan, config=config, out=out, progress=False).results[-1]
    found = {task: last[key] for task, key in METRICS.items() if task in branches}
    return {"method": name, "seed": seed, "epochs": epochs, **found, "seconds": round(time.process_time() - started)}


def gain(row: dict[str, Any], alone: dict[str, dict[str, Any]]) -> float:
    """Delta m of one run against the networks of the same seed."""
    return statistics.mean(row[task] / alone[f"only {task}"][task] - 1 for task in METRICS)


def table(rows: list[dict[str, Any]]) -> str:
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["method"], {})[row["seed"]] = row
    lines = ["| balance | box AP | mask AP | OKS | Δm of each seed | Δm | time |", "|---|---:|---:|---:|---|---:|---:|"]
    plain = statistics.mean(row["seconds"] for row in by_name["fixed"].values())
    means: dict[str, float] = {}
    text: dict[str, str] = {}
    for name, runs in by_name.items():
        values = [
            f"{statistics.mean(row[task] for row in runs.values()):.3f}" if task in next(iter(runs.values())) else "-"
            for task in METRICS
        ]
        cost = statistics.mean(row["seconds"] for row in runs.values()) / plain
        if name in ALONE:
            lines.append(f"| {name} | {' | '.join(values)} | | | {cost:.2f} |")
            continue
        gains = [gain(row, {only: by_name[only][seed] for only in ALONE}) for seed, row in sorted(runs.items())]
        means[name] = statistics.mean(gains)
        each = ", ".join(f"{100 * value:+.1f}" for value in gains)
        text[name] = f"| {name} | {' | '.join(values)} | {each} | {100 * means[name]:+.1f} % | {cost:.2f} |"
    return "\n".join([*lines, *(text[name] for name in sorted(means, key=lambda name: -means[name]))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", default=",".join((*ALONE, *WORDS)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path("runs/balance.jsonl"))
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    for seed in options.seeds:
        for name in options.methods.split(","):
            key = {"method": name, "seed": seed, "epochs": options.epochs}
            if not any(key.items() <= row.items() for row in rows):
                rows.append(run(name, seed, options.epochs, options.device))
                print(rows[-1], flush=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table([row for row in rows if row["epochs"] == options.epochs]))


if __name__ == "__main__":
    main()
