"""Training online, from a feature store, and from batches that are already in memory, side by side in one run.

python tests/benchmarks/feature_store.py [--images 80] [--rounds 3] [--extractors lite0 resnet50 vitb]
    [--clock wall|cpu] [--tasks detect segment keypoint]

Batches of the three take turns, so that whatever else the machine does falls on all alike; times are medians over the
rounds. --clock cpu counts this process's own seconds, for a machine that is busy with other things (then with
OMP_NUM_THREADS=1 --threads 1; it does not see waiting for the disk). Weights are random: they do not change what an
extractor costs. Needs coco_mini (MTYOLO_TEST_DATA).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mtyolo.assembly import build
from mtyolo.config.data import DataConfig
from mtyolo.config.training import LossGains
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.device import find_device
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.writer import extract
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.objectives.tasks import TasksObjective

EXTRACTORS = {
    "lite0": ("timm/tf_efficientnet_lite0", "conv"),
    "resnet50": ("timm/resnet50", "conv"),
    "vitb": ("timm/vit_base_patch16_dinov3", "pyramid"),
}
SIZE, BATCH = 320, 8
TASKS = ("detect", "segment", "keypoint")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
DATA = Path(os.environ.get("MTYOLO_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
Times = dict[str, list[list[float]]]
"""Way of training -> for each batch of an epoch the seconds in each round."""


def coco_mini(images: int) -> Split:
    root = DATA / "coco_mini"
    names = yaml.safe_load((root / "coco_mini.yaml").read_text())["names"]
    kinds = ("instances", "person_keypoints")
    config = DataConfig(
        path=str(root),
        train="images/train",
        annotations={"train": [f"annotations/{kind}_train.json" for kind in kinds]},
        names=names,
        kpt_shape=(17, 3),
    )
    split = load_split(config, "train")
    return replace(split, records=split.records[:images])


def make_model(name: str, adapters: str, tasks: list[str], split: Split) -> Model:
    config = {
        "extractor": {"name": name, "weights": "none"},
        "adapters": {"type": adapters},
        "detector": {"graph": "yolov5n.yaml"},
        "tasks": {task: {} for task in ("detect", *tasks)},
    }
    return build(config, names=split.names, points=17)


class Stepper:
    """One optimiser step on a batch, the extractor frozen."""

    def __init__(self, model: Model, bf16: bool, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        model.train()
        assert model.extractor is not None
        model.extractor.eval().requires_grad_(False)
        self.objective = TasksObjective(model.tasks, LossGains())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
        self.autocast: Any = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def __call__(self, batch: Batch) -> None:
        with self.autocast:
            losses = self.objective(self.model, batch.to(self.device))
        torch.stack(list(losses.tasks.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def forget(directory: Path) -> None:
    """Ask the system to drop the store's files from its memory, so that a cold start reads the disk."""
    for path in directory.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    step: Stepper, split: Split, directory: Path, rounds: int, clock: Callable[[], float]
) -> tuple[Times, float]:
    """Times of the three ways, batch by batch in turn; and of a first epoch from a store just opened."""
    online_loader = make_loader(Dataset(split, SIZE), BATCH, shuffle=False, workers=0, seed=0)
    forget(directory)
    begun = clock()
    store = FeatureStore.open(directory, device=step.device)
    store_loader = make_store_loader(store, split, BATCH, augment=None, shuffle=False, seed=0)
    for batch in store_loader:
        step(batch)
    cold = clock() - begun
    in_memory = list(store_loader)
    step(next(iter(online_loader)))
    list(online_loader)  # decoded images are kept, as in later epochs of a real run
    times: Times = {way: [[] for _ in in_memory] for way in ("online", "store", "ceiling")}
    for _ in range(rounds):
        ways: dict[str, Iterator[Batch]] = {
            "online": iter(online_loader),
            "store": iter(store_loader),
            "ceiling": iter(in_memory),
        }
        for number in range(len(in_memory)):
            for way, batches in ways.items():
                begun = clock()
                step(next(batches))
                times[way][number].append(clock() - begun)
    return times, cold


def epoch(times: list[list[float]]) -> float:
    return sum(statistics.median(batch) for batch in times)


def has_bf16(device: torch.device) -> bool:
    """Where bf16 is only emulated it is slower than fp32, and says nothing."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extractors", nargs="+", choices=EXTRACTORS, default=list(EXTRACTORS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, split = find_device(options.device), coco_mini(options.images)
    precisions = [False, True] if has_bf16(device) else [False]
    print(f"{len(split)} images, {SIZE} px, batches of {BATCH}, {' and '.join(options.tasks)}")
    print(f"{torch.get_num_threads()} threads, {device}, {options.clock} time")
    print("| extractor | precision | online | store, first epoch | store | ceiling | of the ceiling | online / store |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for key in options.extractors:
        model = make_model(*EXTRACTORS[key], options.tasks, split)
        with tempfile.TemporaryDirectory() as folder:
            assert model.extractor is not None
            extract(model.to(device).extractor, [split], folder, SIZE, ExtractOptions(device=device))  # type: ignore[arg-type]
            for bf16 in precisions:
                times, cold = measure(
                    Stepper(model, bf16, device), split, Path(folder), options.rounds, CLOCKS[options.clock]
                )
                online, store, ceiling = (epoch(times[way]) for way in ("online", "store", "ceiling"))
                print(
                    f"| {EXTRACTORS[key][0]} | {'bf16' if bf16 else 'fp32'} | {online:.2f} s | {cold:.2f} s "
                    f"| {store:.2f} s | {ceiling:.2f} s | {ceiling / store:.2f} | {online / store:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
