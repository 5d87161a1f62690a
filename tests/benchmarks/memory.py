"""What it is worth to keep freed memory on a CPU: training and inference with `kept_memory` and without, side by side.

    python tests/benchmarks/memory.py [--rounds 4]

Batches are photos of coco_mini with their labels, whose numbers vary, as in a run. Processes take turns, as the C
library's own rules are not to be had again where they were changed once; in each of them the first batches do not
count. What is shown are medians, and pages that the system gave to a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from distillation import data_file
from teachers_cost import training_steps

from mtyolo.api import build
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.memory import kept_memory
from mtyolo.model import Model, forward
from mtyolo.modes import evaluating
from mtyolo.structures import Batch
from mtyolo.tasks.select import select

BATCHES, FIRST = 4, 2
WORK = (("yolov5n.yaml", 320, 8), ("yolov5n.yaml", 640, 4), ("yolov5s.yaml", 320, 8), ("yolov5n-lite0.yaml", 320, 8))
OWN_RULES = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
"""Changes nothing, but is a setting, which `kept_memory` respects."""

Found = dict[str, tuple[float, float]]  # training, inference -> milliseconds and pages of a batch


def measured(folder: Path, name: str, size: int, batch: int) -> Found:
    """Of this process."""
    data = data_file(folder)
    model = build(name, data=data)
    loader = make_loader(Dataset(load_split(data, "train"), size, None), batch, shuffle=False, workers=0, seed=0)
    given = list(islice(loader, BATCHES))
    (train,) = training_steps(folder / name, model, None, size=size, batch=batch)
    with kept_memory():
        return {
            "training": of_a_batch(train, given),
            "inference": of_a_batch(lambda one: inference(model, one), given),
        }


def inference(model: Model, batch: Batch) -> None:
    with evaluating(model):
        select(model.decode(forward(model, batch)), confidence=0.001, iou=0.6)


def of_a_batch(step: Callable[[Batch], object], given: list[Batch]) -> tuple[float, float]:
    times, pages = [], []
    for batch in [*given[:FIRST], *given, *given]:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        step(batch)
        times.append(1000 * (time.perf_counter() - started))
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(times[FIRST:]), statistics.median(pages[FIRST:])


def in_a_process(number: int, folder: Path, environment: dict[str, str]) -> Found:
    command = [sys.executable, __file__, "--folder", str(folder), "--only", str(number)]
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(number: int, folder: Path, rounds: int) -> list[str]:
    name, size, batch = WORK[number]
    pairs = [[in_a_process(number, folder, rules) for rules in (OWN_RULES, {})] for _ in range(rounds)]
    lines = []
    for kind in ("training", "inference"):
        plain, kept = (
            [statistics.median(column) for column in zip(*(pair[which][kind] for pair in pairs), strict=True)]
            for which in (0, 1)
        )
        ratio = statistics.median(pair[0][kind][0] / pair[1][kind][0] for pair in pairs)
        numbers = f"{plain[0]:.0f} | {kept[0]:.0f} | {ratio:.2f} | {plain[1]:.0f} | {kept[1]:.0f}"
        lines.append(f"| {kind}, {name} at {size} px, {batch} a batch | {numbers} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--only", type=int, choices=range(len(WORK)), help="measure this one, here, and print JSON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.only is not None:
        print(json.dumps(measured(options.folder, *WORK[options.only])))
        return
    print(f"{torch.get_num_threads()} threads")
    print("| | plain, ms | kept, ms | times as fast | pages, plain | kept |\n|---|---:|---:|---:|---:|---:|")
    for number in range(len(WORK)):
        print("\n".join(rows(number, options.folder, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
