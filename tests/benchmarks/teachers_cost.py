"""What a teacher costs in a training step, asked or with its outputs cached, side by side with no teacher.

    OMP_NUM_THREADS=1 python tests/benchmarks/teachers_cost.py [--methods scaled,kl] [--device cpu]

The methods are those of `distillation.py`; students: YOLOv5n at half its width, and YOLOv5n. Batches of 8 at 320
pixels, labels of coco_mini. A round is a step without a teacher, one that asks and one that reads, and their ratios are
taken within it; what is shown are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from distillation import METHODS, SIZE, data_file, student, test_data

from mtyolo.api import build
from mtyolo.config.distill import DistillConfig
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.distill.objective import make_distiller
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.distilling import DistilledObjective
from mtyolo.training.objectives import TasksObjective

BATCH = 8
WARM_UP = 2
DEFAULT = "scaled,kl,relative,scaled+relative at 6 layers"


def measure(folder: Path, model: Model, batch: Batch, method: dict[str, Any], rounds: int) -> list[float]:
    """Seconds of a step without a teacher, and the ratios to it: of one that is asked, of one that is cached."""
    tasks = TasksObjective(("detect",), TrainConfig().gains)
    objectives: list[Any] = [tasks]
    for cached in (False, True):
        teacher = {"weights": str(test_data() / "weights" / "yolov5n.pt"), "cache": cached, "folder": str(folder)}
        config = DistillConfig.model_validate({"teachers": [teacher | method]})
        distiller = make_distiller(config, model, imgsz=SIZE, device=model.anchors.device)
        objectives.append(DistilledObjective(tasks, distiller))
    times = [[step_seconds(model, objective, batch) for objective in objectives] for _ in range(WARM_UP + rounds)]
    ratios = [(plain, asked / plain, cached / plain) for plain, asked, cached in times[WARM_UP:]]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def step_seconds(model: Model, objective: Any, batch: Batch) -> float:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    started = time.perf_counter()
    losses = objective(model, batch)
    torch.stack(list(losses.tasks.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if model.anchors.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/teachers_cost"), help="cached outputs")
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    teachers = {name: method for name, method in METHODS.items() if method is not None}
    unknown = [label for label in options.methods.split(",") if label not in teachers]
    if unknown:
        parser.error(f"no method with a teacher is called {unknown[0]!r}; there are {', '.join(teachers)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    data = data_file(options.folder)
    split = load_split(data, "train")
    batch = next(iter(make_loader(Dataset(split, SIZE, None), BATCH, shuffle=False, workers=0, seed=0)))
    batch = batch.to(options.device)
    print(f"{torch.get_num_threads()} threads")
    print("| student | teacher's terms | no teacher, s | asked | cached |\n|---|---|---:|---:|---:|")
    for name, model in (("width 0.125", student(data, 0)), ("YOLOv5n", build("yolov5n.yaml", data=data))):
        for label in options.methods.split(","):
            folder = options.folder / name / label
            plain, asked, cached = measure(folder, model.to(options.device), batch, teachers[label], options.rounds)
            print(f"| {name} | {label} | {plain:.3f} | {asked:.2f} | {cached:.2f} |", flush=True)


if __name__ == "__main__":
    main()
