"""Extractors of a user's own: their weights, and everything that such a class can get wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtyolo.adapters import make_adapters
from mtyolo.api import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.config.model import AdaptersConfig, ExtractorConfig, Normalisation
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.extractors import EXTRACTORS, make_extractor
from mtyolo.extractors.base import features_of
from mtyolo.extractors.pretrained import identity_of
from mtyolo.imported import import_class
from mtyolo.structures import Level


class Own(nn.Module):
    """Says its levels as it is told, and gives what it is told."""

    def __init__(self, levels: Any = ((8, 4), (16, 4)), gives: str = "right") -> None:
        super().__init__()
        self.levels = levels
        self.gives = gives
        self.convolution = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Any:
        maps = {stride: self.convolution(images)[:, :, ::stride, ::stride] for stride in (8, 16)}
        return {
            "right": maps,
            "list": list(maps.values()),
            "bare": maps[8],
            "channels last": {stride: level.permute(0, 2, 3, 1) for stride, level in maps.items()},
            "one missing": {8: maps[8]},
            "swapped": {8: maps[16], 16: maps[8]},
            "wide": {stride: torch.cat((level, level), 1) for stride, level in maps.items()},
        }[self.gives]


def made(**config: Any) -> Any:
    return make_extractor(ExtractorConfig(name="own", **config), (8, 16), EXTRACTORS | {"own": Own})


def test_weights_of_the_model_file_are_loaded_and_known(tmp_path: Path) -> None:
    wanted = Own()
    save_file(wanted.state_dict(), tmp_path / "own.safetensors")
    found = made(weights=str(tmp_path / "own.safetensors"))
    assert torch.equal(found.convolution.weight, wanted.convolution.weight)
    assert identity_of(found) == identity_of(wanted) != identity_of(made())


def test_what_a_class_says_of_its_weights_goes_before_their_hash() -> None:
    found, bare = made(), Own()
    found.identity = {"name": "own", "weights": "of May"}
    assert identity_of(found) == {"name": "own", "weights": "of May"}
    del bare.convolution
    assert identity_of(bare) == {}, "of what has no weights there is no hash"


def test_weights_that_are_not_there_or_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothere\.safetensors: no such file"):
        made(weights="nothere.safetensors")
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"convolution\.weight is missing: are these the weights of another"):
        made(weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    "config", [{"strides": (8,)}, {"normalisation": Normalisation(mean=(0, 0, 0), std=(1, 1, 1))}], ids=str
)
def test_what_only_timm_models_are_told_is_not_ignored(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"extractor\.{next(iter(config))}: only timm models .*extractor\.arguments"):
        made(**config)


def test_levels_may_be_plain_pairs_and_keep_their_order() -> None:
    """Adapters count what comes in this order, in weights that were saved."""
    for said in ([(16, 4), np.array([8, 4])], [Level(*np.array([16, 4])), Level(8, 4)]):
        found = made(arguments={"levels": said}).levels
        assert found == (Level(16, 4), Level(8, 4))
        assert all(isinstance(level, Level) and all(type(number) is int for number in level) for level in found)


def test_levels_may_be_a_property() -> None:
    class Fixed(Own):
        levels = property(lambda self: (Level(8, 4), Level(16, 4)), lambda self, _: None)

    fixed = make_extractor(ExtractorConfig(name="fixed"), (8,), EXTRACTORS | {"fixed": Fixed})
    assert fixed.levels == (Level(8, 4), Level(16, 4))


@pytest.mark.parametrize("levels", [{8: 4}, [8, 16], [(8,)], [("8", 4)], 8, [(8, 4, 2)], [(0, 4)], [(8.0, 4)]], ids=str)
def test_other_forms_of_levels_are_refused(levels: Any) -> None:
    with pytest.raises(ConfigError, match=r"its levels are .*set self\.levels = \(mtyolo\.Level\(stride, channels\)"):
        made(arguments={"levels": levels})


def test_an_argument_that_the_class_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"extractor\.arguments: own: got an unexpected keyword argument 'widht'"):
        made(arguments={"widht": 3})


@pytest.mark.parametrize("images", [2, 6])  # in one go, and in fours
@pytest.mark.parametrize(
    ("gives", "sentence"),
    [
        ("list", r"expected a dictionary \{stride: \[B, C, H/stride, W/stride\]\}, got list"),
        ("bare", "expected a dictionary .* got Tensor"),
        ("channels last", r"channels come last there: give features\.permute\(0, 3, 1, 2\)"),
        ("one missing", "stride 16: missing"),
        ("swapped", "stride 8: expected 4 channels of 4x6 .* got 4 channels of 2x3"),
        ("wide", "stride 8: expected 4 channels .* got 8 channels"),
    ],
)
def test_other_features_than_promised_are_named(gives: str, sentence: str, images: int) -> None:
    extractor = made(arguments={"gives": gives}).eval()
    with pytest.raises(ConfigError, match=f"extractor Own: gives other features than its levels say: .*{sentence}"):
        features_of(extractor, torch.rand(images, 3, 32, 48))


def test_right_features_pass() -> None:
    assert list(features_of(made(), torch.rand(2, 3, 32, 48))) == [8, 16]


def test_a_model_with_features_of_one_stride_is_built() -> None:
    config = {"extractor": {"name": "own", "arguments": {"levels": [(8, 4)]}}, "detector": {"graph": "yolov5n.yaml"}}
    assert build(config, extractors={"own": Own}).extractor is not None


def test_weights_that_only_timm_models_have_are_refused_and_those_of_the_class_are_its_own(tmp_path: Path) -> None:
    extractor = {"name": "own", "arguments": {"levels": [[8, 4]]}}
    config: dict[str, Any] = {"detector": {"graph": "yolov5n.yaml"}}
    named = {**config, "extractor": extractor | {"weights": "imagenet"}}
    with pytest.raises(ConfigError, match=r"extractor\.weights: imagenet: only timm models .*\.safetensors.* none"):
        build(named, extractors={"own": Own})
    with pytest.raises(ConfigError, match=r"imagenet: only timm models have these, not nets:Net"):
        build({**config, "extractor": {"name": "nets:Net", "weights": "imagenet"}}, trust=True)
    model = build({**config, "extractor": extractor}, extractors={"own": Own})
    again = build(model.config, extractors={"own": Own})  # with all defaults written out
    assert (
        build({**config, "extractor": extractor | {"weights": "none"}}, extractors={"own": Own}).extractor is not None
    )
    weights = save_weights(again, tmp_path / "own.safetensors")
    assert load(weights, extractors={"own": Own}).extractor is not None
    with pytest.raises(ConfigError, match="unknown extractor 'resnet50'; did you mean timm/resnet50"):
        build({**config, "extractor": {"name": "resnet50", "weights": "imagenet"}})


def test_modules_are_found_in_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_mine.py").write_text("class Net: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert import_class("module_of_mine:Net", "extractor.name", trust=True).__name__ == "Net"
    with pytest.raises(ConfigError, match="write the module as import does, module_of_mine:"):
        import_class("module_of_mine.py:Net", "extractor.name", trust=True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tiny.Tiny", "tiny:Tiny"),
        ("my.nets.Tiny", "my.nets:Tiny"),
        ("Tiny", "<module>:Tiny"),
        ("here.make_net", "here:make_net"),
        ("here", "here:<Class>"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_a_class_that_is_named_otherwise_is_told_how(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("raise RuntimeError('nobody said that this may run')")
    with pytest.raises(ConfigError) as refusal:
        make_extractor(ExtractorConfig(name=name), (8, 16))
    assert f"unknown extractor {name!r}; did you mean {meant}? (known" in str(refusal.value)
    assert "your own classes as module:Class with --trust" in str(refusal.value)


def test_an_adapter_that_is_named_otherwise_is_told_how() -> None:
    with pytest.raises(ConfigError, match=r"adapters.type: unknown adapter 'tiny\.Tiny'; did you mean tiny:Tiny\?"):
        make_adapters(AdaptersConfig(type="tiny.Tiny"), [Level(8, 4)], [Level(8, 4)])
