"""What heat-maps bring to keypoints: the branch with and without them on a frozen detector, over seeds, equal epochs.

    OMP_NUM_THREADS=1 python tests/benchmarks/keypoints.py [--epochs 20] [--seeds 0 1 2]

The official YOLOv5n, frozen, with a fresh keypoint branch that learns from the 86 people on the 80 photos of coco_mini
at 320 pixels; judged on the 39 people of its 40 validation photos with the weights of the last epoch. Seconds are those
of the whole run, validation included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from balance import DATA, SIZE, coco_mini

from mtyolo.api import build, train
from mtyolo.config.training import TrainConfig

STAGE = {"name": "points", "norms": "frozen", "optimizer": "adamw", "lr": 0.004, "train": ["keypoint"]}


def run(heatmaps: bool, seed: int, epochs: int) -> tuple[float, float, float]:
    """Mean OKS and keypoint AP after the last epoch, and seconds."""
    torch.manual_seed(seed)
    detector = {"graph": "yolov5n.yaml", "weights": str(DATA / "weights" / "yolov5n.pt")}
    tasks: dict[str, Any] = {"detect": {}, "keypoint": {"heatmaps": heatmaps}}
    model = build({"detector": detector, "tasks": tasks}, data=coco_mini())
    config = TrainConfig(epochs=epochs, imgsz=SIZE, batch=4, workers=0, device="cpu", seed=seed, val_every=epochs)
    plan = {"stages": [STAGE | {"tasks": ["keypoint"]}]}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        last = train(model, coco_mini(), plan=plan, config=config, out=out, progress=False).results[-1]
    return float(last["keypoint/OKS"] or 0), float(last["keypoint/AP"] or 0), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(
        "| keypoint branch | mean OKS, each seed | mean | AP, each seed | mean | seconds |",
        "|---|---|---:|---|---:|---:|",
        sep="\n",
    )
    for heatmaps in (False, True):
        found = [run(heatmaps, seed, options.epochs) for seed in options.seeds]
        cells = [
            f"{', '.join(f'{value:.{digits}f}' for value in column)} | {statistics.mean(column):.{digits}f}"
            for column, digits in zip(list(zip(*found, strict=True))[:2], (3, 4), strict=True)
        ]
        seconds = statistics.mean(row[2] for row in found)
        print(f"| {'with' if heatmaps else 'without'} heat-maps | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
