"""Features that are not what the model takes are refused at the door, in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtyolo.errors import DataError
from mtyolo.extractors.checking import check_pyramid
from mtyolo.structures import Level

LEVELS = (Level(8, 64), Level(16, 128), Level(32, 256))


def features(height: int = 640, width: int = 640, **changes: torch.Tensor) -> dict[int, torch.Tensor]:
    pyramid = {
        level.stride: torch.zeros(2, level.channels, height // level.stride, width // level.stride) for level in LEVELS
    }
    return pyramid | {int(stride.removeprefix("s")): tensor for stride, tensor in changes.items()}


def test_the_input_size_is_inferred_from_the_finest_level() -> None:
    assert check_pyramid(features(320, 384), LEVELS, None) == (320, 384)
    assert check_pyramid(features(320, 384), LEVELS, (320, 384)) == (320, 384)
    assert check_pyramid(features(320, 512), LEVELS, None) == (320, 512), "as wide as there are channels"


def test_levels_that_the_model_does_not_take_are_no_mistake() -> None:
    assert check_pyramid(features(s4=torch.zeros(2, 8, 160, 160)), LEVELS, None) == (640, 640)


@pytest.mark.parametrize(
    ("pyramid", "size", "sentence"),
    [
        (
            features(s8=torch.zeros(2, 40, 79, 80)),
            (640, 640),
            "stride 8: expected 64 channels of 80x80 for a 640x640 input, got 40 channels of 79x80",
        ),
        (
            features(s16=torch.zeros(2, 128, 40, 41)),
            None,
            "stride 16: expected 128 channels of 40x40 for a 640x640 input, got 128 channels of 40x41",
        ),
        (
            features(),
            (320, 640),
            "stride 8: expected 64 channels of 40x80 for a 320x640 input, got 64 channels of 80x80",
        ),
        (
            features(s32=torch.zeros(2, 128, 20, 20)),
            None,
            "stride 32: expected 256 channels of 20x20 for a 640x640 input, got 128 channels of 20x20",
        ),
        (
            {stride: level.permute(0, 2, 3, 1) for stride, level in features(320, 384).items()},
            None,
            "stride 8: expected 64 channels of 40x48 for a 320x384 input, got 40 channels of 48x64; channels come last "
            r"there: give features\.permute",
        ),
        (
            features(s8=torch.zeros(2, 40, 64, 64)),
            (512, 512),
            "stride 8: expected 64 channels of 64x64 for a 512x512 input, got 40 channels of 64x64$",
        ),
        ({8: torch.zeros(1, 64, 8, 8)}, None, r"stride 16: missing; the model takes strides \[8, 16, 32\]"),
        ({}, (640, 640), "stride 8: missing"),
        (
            features(s8=torch.zeros(64, 80, 80)),
            None,
            r"stride 8: expected floats \[B, C, H, W\], got .* \[64, 80, 80\]",
        ),
        (features(s8=torch.zeros(80)), None, r"stride 8: expected floats \[B, C, H, W\], got torch\.float32 \[80\]"),
        (
            features(s16=torch.zeros(2, 128, 40, 40, dtype=torch.uint8)),
            None,
            r"stride 16: expected floats \[B, C, H, W\], got torch\.uint8 \[2, 128, 40, 40\]",
        ),
        (
            features(s32=torch.zeros(3, 256, 20, 20)),
            None,
            "stride 32: features of 3 images, the finest level has 2",
        ),
    ],
)
def test_wrong_features_are_named(
    pyramid: dict[int, torch.Tensor], size: tuple[int, int] | None, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        check_pyramid(pyramid, LEVELS, size)


def test_arrays_in_place_of_tensors_are_named() -> None:
    pyramid = {level.stride: np.zeros((2, level.channels, 8, 8), np.float32) for level in LEVELS}
    with pytest.raises(DataError, match=r"stride 8: expected a tensor \[B, C, H, W\], got ndarray"):
        check_pyramid(pyramid, LEVELS, None)  # type: ignore[arg-type]


def test_a_stride_that_does_not_divide_the_input_may_round_either_way() -> None:
    for cells in (45, 46):
        for size in ((640, 640), (630, 640)):
            given = {14: torch.zeros(1, 8, size[0] // 14, cells)}
            assert check_pyramid(given, (Level(14, 8),), size) == size
    with pytest.raises(DataError, match=r"stride 14: expected 8 channels of 45x45 .* got 9 channels"):
        check_pyramid({14: torch.zeros(1, 9, 45, 45)}, (Level(14, 8),), (640, 640))
