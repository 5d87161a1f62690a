"""What a teacher costs in a training step, asked or with its outputs cached, side by side with no teacher.

    OMP_NUM_THREADS=1 python tests/benchmarks/teachers_cost.py [--methods scaled,kl] [--students narrow] [--device cpu]

The methods are those of `distillation.py`; students: YOLOv5n at half its width (`narrow`), YOLOv5n whole, and the
adapters of `distillation.py` that train on a feature store (`lite0`, `lite0-layer4`). Batches of 8 at 320 pixels,
labels of coco_mini. A step is one of the training loop, with its optimiser and its average; what loads
pictures works in other processes and is left out. A round is five steps without a teacher, five that ask and five that
read; ratios are taken within it. What is shown are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distillation import ENTRIES, METHODS, SIZE, data_file, extracted, student, test_data

from mtyolo.api import build
from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.memory import kept_memory
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.between import Tools
from mtyolo.training.processes import make_accelerator
from mtyolo.training.records.progress import Display
from mtyolo.training.settings import settle
from mtyolo.training.stages import plan_stages
from mtyolo.training.state import make_state
from mtyolo.training.step import training_step
from mtyolo.training.stopping import StopRequest
from mtyolo.training.work import make_work

BATCH = 8
STEPS = 5
DEFAULT = "scaled,kl,relative,scaled+relative at 6 layers"
STUDENTS = ("narrow", "yolov5n", *ENTRIES)


def measure(
    folder: Path, model: Model, batch: Batch, method: dict[str, Any], rounds: int, store: FeatureStore | None
) -> list[float]:
    """Seconds of a step without a teacher, and the ratios to it: of one that is asked, of one that is cached."""
    steps = training_steps(folder, model, method, store=store)
    times = [[seconds(partial(step, batch)) for step in steps] for _ in range(rounds)]
    ratios = [(plain, asked / plain, cached / plain) for plain, asked, cached in times]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def training_steps(
    folder: Path,
    model: Model,
    method: dict[str, Any] | None,
    *,
    size: int = SIZE,
    batch: int = BATCH,
    store: FeatureStore | None = None,
) -> list[Callable[[Batch], bool]]:
    """Whole steps of the training loop on one model: of stages without a teacher, and, with a method, with one that is
    asked and with one that is cached. store: of an extractor's features, before which adapters alone train."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = str(test_data() / "weights" / "yolov5n.pt")
    asked = (False, True) if method is not None else ()
    teachers = [{"weights": weights, "cache": cached, "folder": str(folder)} | (method or {}) for cached in asked]
    stages: list[dict[str, Any]] = [
        {"name": "plain"},
        *({"name": f"taught {n}", "distill": {"teachers": [t]}} for n, t in enumerate(teachers)),
    ]
    same: dict[str, Any] = {"augment": False} | ({} if store is None else {"train": ["adapters"]})
    plan = read_plan({"stages": [stage | same for stage in stages]})
    device = model.anchors.device
    config = TrainConfig(epochs=3, batch=batch, imgsz=size, device=str(device), workers=0)
    data = data_file(folder)
    state = make_state(model, settle(model, data, plan, config, None), folder, device, None)
    accelerator, split = make_accelerator(config, folder), load_split(data, "train")
    tools = Tools(config, plan, split, None, None, None, accelerator, Display(False), StopRequest())
    options = {"plan": plan, "config": config, "store": store, "accelerator": accelerator}
    works = [make_work(stage, model, split, **options) for stage in plan_stages(plan, config, model)]
    for group in (group for work in works for group in work.optimizer.param_groups):
        group["lr"] = 0.0
    return [partial(training_step, state, work, tools=tools) for work in works]


def seconds(step: Callable[[], object]) -> float:
    """Of one among others of its kind, as in a run: the first, which finds caches and memory as another kind left
    them, does not count."""
    return statistics.median([_seconds(step) for _ in range(1 + STEPS)][1:])


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@kept_memory()  # as training does
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=DEFAULT)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=["narrow", "yolov5n"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/teachers_cost"), help="cached outputs")
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    teachers = {name: method for name, method in METHODS.items() if method is not None}
    unknown = [label for label in options.methods.split(",") if label not in teachers]
    if unknown:
        parser.error(f"no method with a teacher is called {unknown[0]!r}; there are {', '.join(teachers)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{torch.get_num_threads()} threads")
    print("| student | teacher's terms | no teacher, s | asked | cached |\n|---|---|---:|---:|---:|")
    for name in options.students:
        model, batch, store = taught(name, options.folder, options.device)
        for label in options.methods.split(","):
            folder = options.folder / name / label
            plain, asked, cached = measure(folder, model, batch, teachers[label], options.rounds, store)
            print(f"| {name} | {label} | {plain:.3f} | {asked:.2f} | {cached:.2f} |", flush=True)


def taught(name: str, folder: Path, device: torch.device) -> tuple[Model, Batch, FeatureStore | None]:
    """A student, what it sees in every step, and its store of features, if any."""
    data = data_file(folder)
    split = load_split(data, "train")
    if name not in ENTRIES:
        model = student(data, 0) if name == "narrow" else build("yolov5n.yaml", data=data)
        loader = make_loader(Dataset(split, SIZE, keyed=True), BATCH, shuffle=False, workers=0, seed=0)
        return model.to(device), next(iter(loader)).to(device), None
    place = extracted(data, folder)
    store = FeatureStore.open(place)
    batch = next(iter(make_store_loader(store, split, BATCH, augment=None, shuffle=False, seed=0, pixels=True)))
    return student(data, 0, name, store=place).to(device), batch.to(device), store


if __name__ == "__main__":
    main()
