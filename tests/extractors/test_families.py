"""Twenty timm families, each through adapters to the levels of a YOLOv5n neck."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, ONE_STRIDE

from mtyolo.adapters import make_adapters
from mtyolo.config.model import AdaptersConfig
from mtyolo.extractors.timm import TimmExtractor
from mtyolo.structures import Level

NECK = (Level(8, 64), Level(16, 128), Level(32, 256))
SIZES = ((320, 320), (256, 384))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_the_necks_levels_and_learns(name: str) -> None:
    extractor = TimmExtractor(name, weights="none")
    kind = "pyramid" if name in ONE_STRIDE else "conv"
    assert (len(extractor.levels) == 1) == (name in ONE_STRIDE)
    adapters = make_adapters(AdaptersConfig(type=kind), extractor.levels, NECK)
    for height, width in SIZES:
        pyramid = extractor(torch.rand(2, 3, height, width))
        for level, (stride, features) in zip(extractor.levels, pyramid.items(), strict=True):
            assert stride == level.stride
            assert features.shape == (2, level.channels, height // stride, width // stride)
        adapted = adapters(pyramid, (height, width))
        assert {stride: tuple(level.shape) for stride, level in adapted.items()} == {
            level.stride: (2, level.channels, height // level.stride, width // level.stride) for level in NECK
        }
    torch.stack([level.square().mean() for level in adapted.values()]).sum().backward()
    gradients = {key: parameter.grad for key, parameter in extractor.named_parameters() if parameter.grad is not None}
    assert next(iter(gradients)) == next(key for key, _ in extractor.named_parameters()), "the first layer learns"
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
