"""Are these the features that were promised? Checked once, at the door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mtyolo.errors import DataError
from mtyolo.structures import Level, Pyramid

Size = tuple[int, int]


def check_pyramid(pyramid: Pyramid, levels: Sequence[Level], size: Size | None) -> Size:
    """Compare features with the levels that the model takes; returns the input size, inferred when not given.

    Raises DataError naming stride, expectation and what was got.
    """
    if not isinstance(pyramid, Mapping):
        raise DataError(f"expected a dictionary {{stride: [B, C, H/stride, W/stride]}}, got {type(pyramid).__name__}")
    missing = [level.stride for level in levels if level.stride not in pyramid]
    if missing:
        raise DataError(f"stride {missing[0]}: missing; the model takes strides {[level.stride for level in levels]}")
    for level in levels:
        _check_kind(level.stride, pyramid[level.stride])
    if size is None:
        finest = min(levels).stride
        shape, channels = pyramid[finest].shape, min(levels).channels
        # Where channels come last, the sides are taken from where they are, so that the sentence can say it.
        height, width = shape[1:3] if shape[1] != channels == shape[3] else shape[2:]
        size = (height * finest, width * finest)
    for level in levels:
        _check_shape(level, pyramid[level.stride], size, images=pyramid[min(levels).stride].shape[0])
    return size


def _check_kind(stride: int, features: object) -> None:
    if not isinstance(features, Tensor):
        raise DataError(f"stride {stride}: expected a tensor [B, C, H, W], got {type(features).__name__}")
    if features.ndim != 4 or not features.is_floating_point():
        raise DataError(f"stride {stride}: expected floats [B, C, H, W], got {features.dtype} {list(features.shape)}")


def _check_shape(level: Level, features: Tensor, size: Size, images: int) -> None:
    batch, channels, height, width = features.shape
    wanted = (size[0] // level.stride, size[1] // level.stride)
    # Where a stride does not divide the size, any rounding is right; adapters resample.
    fits = (height, width) == wanted or any(side % level.stride for side in size)
    if channels != level.channels or not fits:
        last = tuple(features.shape[1:]) == (*wanted, level.channels)
        raise DataError(
            f"stride {level.stride}: expected {level.channels} channels of {wanted[0]}x{wanted[1]} for a "
            f"{size[0]}x{size[1]} input, got {channels} channels of {height}x{width}"
            + ("; channels come last there: give features.permute(0, 3, 1, 2)" if last else "")
        )
    if batch != images:
        raise DataError(f"stride {level.stride}: features of {batch} images, the finest level has {images}")
