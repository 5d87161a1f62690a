"""Features as they are stored: fp32, fp16, bf16, or int8 with a range for each image and channel."""

from __future__ import annotations

import torch
from torch import Tensor

from mtyolo.errors import StoreError
from mtyolo.features.manifest import Dtype, Manifest
from mtyolo.features.shards import Stored
from mtyolo.structures import Pyramid

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.uint8,
}
CODES = 255
"""An int8 value is low + code * step, with codes 0 to 255 over the channel's range in this image."""


def encode(pyramid: Pyramid, dtype: Dtype) -> Stored:
    """stride -> [n, C, h, w] as tensors of a shard, on the CPU. Raises StoreError for values that do not fit."""
    stored: Stored = {}
    for stride, level in pyramid.items():
        level = level.detach().float()
        if dtype == "int8":
            stored |= _encode_range(stride, level)
        else:
            stored[str(stride)] = level.to(TORCH_DTYPES[dtype]).cpu()
        check = level if dtype == "int8" else stored[str(stride)]
        if not torch.isfinite(check).all():
            largest = float(level.abs().max())
            raise StoreError(
                f"stride {stride}: the features hold values up to {largest:g}, which {dtype} can not store; "
                "use --dtype bf16 or fp32" + ("" if torch.isfinite(level).all() else " after mending the extractor")
            )
    return stored


def _encode_range(stride: int, level: Tensor) -> Stored:
    low, high = level.amin((2, 3)), level.amax((2, 3))
    step = (high - low) / CODES
    # A channel that is constant has step 0: any code gives low.
    codes = ((level - low[..., None, None]) / step.clamp(min=torch.finfo(torch.float32).tiny)[..., None, None]).round()
    return {
        str(stride): codes.clamp(0, CODES).to(torch.uint8).cpu(),
        f"{stride}.low": low.cpu(),
        f"{stride}.step": step.cpu(),
    }


def expected_tensors(manifest: Manifest, rows: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> type and shape of the tensors of a shard with so many images."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for stride, channels in manifest.levels.items():
        count = rows * manifest.views
        expected[str(stride)] = TORCH_DTYPES[manifest.dtype], (count, *manifest.shape(stride))
        if manifest.dtype == "int8":
            expected |= {f"{stride}.{name}": (torch.float32, (count, channels)) for name in ("low", "step")}
    return expected


def bytes_per_image(manifest: Manifest) -> int:
    """Of the features of one image, all views; file headers come on top."""
    total = 0
    for dtype, shape in expected_tensors(manifest, 1).values():
        total += dtype.itemsize * torch.Size(shape).numel()
    return total


def decode_into(target: Tensor, stored: Stored, stride: int, row: int, rows: slice, columns: slice) -> None:
    """Copy a window of one view's level from a shard into `target` [C, h, w]."""
    target.copy_(stored[str(stride)][row, :, rows, columns])
    step = stored.get(f"{stride}.step")
    if step is not None:
        target.mul_(step[row, :, None, None]).add_(stored[f"{stride}.low"][row, :, None, None])
