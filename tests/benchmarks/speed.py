"""Forward pass and training step of YOLOv5n as mtyolo runs it, against the same network run plainly, in one run.

    python tests/benchmarks/speed.py [--imgsz 320] [--batch 8] [--rounds 8] [--device cpu]

Plain: contiguous weights and images, float32. mtyolo: channels_last; beside it bf16 autocast. Rounds are interleaved,
so that a busy machine disturbs all alike; the table shows medians and ratios.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from mtyolo.assembly import build
from mtyolo.config.training import LossGains
from mtyolo.model import Model
from mtyolo.structures import Outputs, Targets
from mtyolo.tasks import compute_losses


def targets_for(batch: int, objects: int = 7) -> Targets:
    """About as many objects an image as COCO has."""
    generator = torch.Generator().manual_seed(0)
    centre, size = (torch.rand(batch * objects, 2, generator=generator) for _ in range(2))
    return Targets(
        image_index=torch.arange(batch).repeat_interleave(objects),
        classes=torch.randint(0, 80, (batch * objects,), generator=generator),
        boxes_cxcywh=torch.cat((centre, 0.05 + 0.4 * size), 1),
        labelled={"detect": torch.ones(batch, dtype=torch.bool)},
    )


def forward(model: Model, images: torch.Tensor) -> Outputs:
    """The modules alone: Model.forward would turn plain images into channels_last ones."""
    fused = model.graph(images, {})
    return Outputs({}, fused, model.branches["detect"](fused))


def training_step(model: Model, images: torch.Tensor, targets: Targets) -> None:
    outputs = forward(model, images)
    losses = compute_losses(["detect"], outputs, targets, model.anchors, model.strides, LossGains())
    torch.stack(list(losses["detect"].values())).sum().backward()
    model.zero_grad(set_to_none=True)


def interleaved(work: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, all measured in every round."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    device = options.device
    ours = build("yolov5n.yaml").train().to(device)
    plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    images = torch.rand(options.batch, 3, options.imgsz, options.imgsz, device=device)
    fast = images.contiguous(memory_format=torch.channels_last)
    targets = targets_for(options.batch).to(device)

    def halved(step: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                step()

        return run

    kinds: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {
            "plain": torch.no_grad()(lambda: forward(plain, images)),
            "channels_last": torch.no_grad()(lambda: forward(ours, fast)),
            "channels_last, bf16": torch.no_grad()(halved(lambda: forward(ours, fast))),
        },
        "training step": {
            "plain": lambda: training_step(plain, images, targets),
            "channels_last": lambda: training_step(ours, fast, targets),
            "channels_last, bf16": halved(lambda: training_step(ours, fast, targets)),
        },
    }
    print(
        f"YOLOv5n, {options.imgsz} px, batch {options.batch}, {device}, {torch.get_num_threads()} threads; ms an image"
    )
    for kind, work in kinds.items():
        seconds = interleaved(work, options.rounds, device)
        for name, value in seconds.items():
            print(f"{kind:14} {name:22} {value / options.batch * 1e3:8.1f} {seconds['plain'] / value:6.2f}x")


if __name__ == "__main__":
    main()
