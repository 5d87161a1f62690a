"""`--batch auto`: as many images a step as the GPU's memory takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from mtyolo.extractors import GivenFeatures
from mtyolo.model import Model
from mtyolo.structures import Pyramid

WITHOUT_GPU = 16
"""The official recipe's; a CPU is no faster with more."""
PROBES = (1, 2, 4)
MEMORY_SHARE = 0.7
"""Of the free memory: losses, optimiser and the average of the weights need some too."""
MOST = 256


def fitting_batch(model: Model, size: int, device: torch.device) -> int:
    """Batch size for training at `size` pixels. The model is not changed."""
    if device.type != "cuda":
        return WITHOUT_GPU
    probed = copy.deepcopy(model).to(device).train()
    used = [_memory_of_step(probed, size, batch, device) for batch in PROBES]
    free, _ = torch.cuda.mem_get_info(device)
    return largest_batch(PROBES, used, free * MEMORY_SHARE)


def largest_batch(batches: Sequence[int], used: Sequence[float], available: float) -> int:
    """Memory grows in a straight line with the batch: how many fit? At least 1, at most MOST, even where above 1."""
    slope, fixed = np.polyfit(batches, used, 1)
    fitting = int((available - fixed) / slope) if slope > 0 else MOST
    fitting = max(1, min(MOST, fitting))
    return fitting - fitting % 2 if fitting > 1 else 1


def _memory_of_step(model: Model, size: int, batch: int, device: torch.device) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if isinstance(model.extractor, GivenFeatures):
        outputs = model(pyramid=_features(model.extractor, size, batch, device))
    else:
        outputs = model(torch.rand(batch, 3, size, size, device=device))
    torch.stack([level.float().mean() for level in outputs.detect]).sum().backward()
    model.zero_grad(set_to_none=True)
    return float(torch.cuda.max_memory_allocated(device))


def _features(extractor: GivenFeatures, size: int, batch: int, device: torch.device) -> Pyramid:
    shapes = {level.stride: (level.channels, size // level.stride, size // level.stride) for level in extractor.levels}
    return {stride: torch.rand(batch, *shape, device=device) for stride, shape in shapes.items()}
