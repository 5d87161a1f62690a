"""The word that a model file says, and the extractor that it gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtyolo.config.model import ExtractorConfig
from mtyolo.errors import ConfigError
from mtyolo.extractors import EXTRACTORS, Extractor, make_extractor
from mtyolo.structures import Level, Pyramid

STRIDES = (8, 16, 32)


class Mine(Extractor):
    """Colours, averaged over cells."""

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.levels = (Level(stride, 3),)

    def forward(self, images: Tensor) -> Pyramid:
        return {level.stride: torch.nn.functional.avg_pool2d(images, level.stride) for level in self.levels}


class WithoutLevels(Extractor):
    pass


def test_features_from_outside_are_known_by_their_levels_only() -> None:
    extractor = make_extractor(ExtractorConfig(name="features", levels={32: 256, 8: 64}), STRIDES)
    assert extractor.levels == (Level(8, 64), Level(32, 256))
    assert not list(extractor.parameters())
    with pytest.raises(ConfigError, match=r"takes features, not images: give pyramid=\{8: …, 32: …\}"):
        extractor(torch.rand(1, 3, 64, 64))


def test_a_class_of_ones_own_comes_in_by_name() -> None:
    config = ExtractorConfig(name="mine", arguments={"stride": 16})
    extractor = make_extractor(config, STRIDES, EXTRACTORS | {"mine": Mine})
    assert extractor.levels == (Level(16, 3),)
    assert extractor.identity == {"name": "Mine"}
    assert torch.allclose(extractor(torch.ones(1, 3, 32, 48))[16], torch.ones(1, 3, 2, 3))


def test_a_class_named_by_its_import_path_needs_trust() -> None:
    config = ExtractorConfig(name="test_extractor_choice:Mine")
    with pytest.raises(ConfigError, match=r"extractor\.name: test_extractor_choice:Mine would import code.*trust=True"):
        make_extractor(config, STRIDES)
    assert make_extractor(config, STRIDES, trust=True).levels == (Level(8, 3),)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nosuch.module:Mine", r"No module named 'nosuch'; modules are looked for"),
        ("test_extractor_choice:Yours", "has no Yours"),
        ("test_extractor_choice:STRIDES", "is no class"),
        ("test_extractor_choice:WithoutLevels", r"has no levels; set self.levels"),
        ("resnet18", r"unknown extractor 'resnet18'; did you mean timm/resnet18\?"),
        ("tim/resnet18", r"unknown extractor 'tim/resnet18'; known: timm/<model>"),
        ("feature", r"unknown extractor 'feature'"),
    ],
)
def test_a_name_that_is_no_extractor_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_extractor(ExtractorConfig(name=name), STRIDES, trust=True)


def test_an_extractor_without_a_forward_says_so() -> None:
    with pytest.raises(ConfigError, match="WithoutLevels does not say how to make features"):
        WithoutLevels()(torch.rand(1, 3, 32, 32))
