"""Adapters give the replaced layers' channels at the right sizes, from whatever levels there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, silu

from mtyolo.adapters import ADAPTERS, ConvAdapter, FusionAdapter, Identity, PyramidAdapter, make_adapters
from mtyolo.adapters.blocks import ChannelAffine, make_norm, nearest_level, resampled
from mtyolo.assembly import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.config.model import AdaptersConfig
from mtyolo.errors import ConfigError
from mtyolo.structures import Level, Pyramid

NECK = (Level(8, 64), Level(16, 128), Level(32, 256))
SIZE = (64, 96)


def features(levels: tuple[Level, ...], size: tuple[int, int] = SIZE, batch: int = 2) -> Pyramid:
    return {
        level.stride: torch.rand(batch, level.channels, size[0] // level.stride, size[1] // level.stride)
        for level in levels
    }


def shapes(pyramid: Pyramid) -> dict[int, tuple[int, ...]]:
    return {stride: tuple(level.shape) for stride, level in pyramid.items()}


def set_to_identity(adapters: nn.Module) -> None:
    """1x1 convolutions that pass on what comes."""
    with torch.no_grad():
        for module in adapters.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(torch.eye(len(module.weight))[:, :, None, None])
                assert module.bias is not None
                module.bias.zero_()


@pytest.mark.parametrize("kind", ["conv", "pyramid", "fusion"])
@pytest.mark.parametrize(
    "inputs",
    [
        (Level(8, 40), Level(16, 112), Level(32, 320)),
        (Level(16, 48),),
        (Level(4, 8), Level(8, 24)),
        (Level(16, 24), Level(32, 40)),
        (Level(64, 24),),
        (Level(1, 8),),
    ],
    ids=["three", "one", "finer", "coarser", "one-coarse", "pixels"],
)
def test_any_levels_come_out_as_the_wanted_ones(kind: str, inputs: tuple[Level, ...]) -> None:
    size = (128, 192)
    adapters = make_adapters(AdaptersConfig(type=kind), inputs, NECK)
    adapted = adapters(features(inputs, size), size)
    assert shapes(adapted) == {8: (2, 64, 16, 24), 16: (2, 128, 8, 12), 32: (2, 256, 4, 6)}
    torch.stack([level.square().mean() for level in adapted.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapters.parameters())


@pytest.mark.parametrize("kind", ["conv", "pyramid", "fusion"])
def test_features_of_other_sizes_than_promised_are_resampled(kind: str) -> None:
    """A 14-pixel patch on a 96-pixel image has no whole number of cells: what comes has 6x6, not 6.86x6.86."""
    inputs = (Level(14, 32),)
    adapters = make_adapters(AdaptersConfig(type=kind), inputs, NECK)
    adapted = adapters({14: torch.rand(2, 32, 6, 6)}, (96, 96))
    assert shapes(adapted) == {8: (2, 64, 12, 12), 16: (2, 128, 6, 6), 32: (2, 256, 3, 3)}


def test_identity_passes_on_the_very_tensors() -> None:
    adapters = Identity((Level(4, 8), *NECK), NECK)
    pyramid = features((Level(4, 8), *NECK))
    adapted = adapters(pyramid, SIZE)
    assert list(adapted) == [8, 16, 32]
    assert all(adapted[stride] is pyramid[stride] for stride in adapted)
    assert not list(adapters.parameters())


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((Level(8, 40), Level(16, 128), Level(32, 256)), "stride 8: the replaced layer has 64 .* gives 40 channels"),
        ((Level(8, 64), Level(16, 128)), "stride 32: the replaced layer has 256 .* gives nothing; use type: conv"),
    ],
)
def test_identity_refuses_what_does_not_fit(inputs: tuple[Level, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Identity(inputs, NECK)


def test_conv_averages_where_it_shrinks() -> None:
    adapters = ConvAdapter((Level(8, 4),), (Level(16, 4),), norm="none")
    set_to_identity(adapters)
    pyramid = features((Level(8, 4),))
    assert torch.allclose(adapters(pyramid, SIZE)[16], silu(avg_pool2d(pyramid[8], 2)), atol=1e-6)


def test_what_grows_along_one_side_is_interpolated() -> None:
    rows = torch.tensor([0.0, 1.0])[:, None].expand(1, 1, 2, 4)
    assert resampled(rows, (4, 2))[0, 0].tolist() == [[0, 0], [0.25, 0.25], [0.75, 0.75], [1, 1]]


def test_pyramid_takes_the_largest_where_it_shrinks() -> None:
    adapters = PyramidAdapter((Level(8, 4),), (Level(32, 4),), depth=1, norm="none")
    set_to_identity(adapters)
    pyramid = features((Level(8, 4),))
    assert torch.allclose(adapters(pyramid, SIZE)[32], silu(max_pool2d(pyramid[8], 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "expected"), [((Level(32, 64),), [2, 1, 0]), ((Level(14, 64),), [1, 0, 0]), (NECK, [0, 0, 0])], ids=str
)
def test_pyramid_doubles_once_for_each_octave_from_the_nearest_level(
    inputs: tuple[Level, ...], expected: list[int]
) -> None:
    adapters = PyramidAdapter(inputs, NECK)
    doublings = [sum(isinstance(part, nn.ConvTranspose2d) for part in layer) for layer in adapters.layers]
    assert doublings == expected
    assert set(adapters.sources) == set(inputs)


@pytest.mark.parametrize(("channels", "widths"), [(512, [256, 128]), (100, [64, 64])])
def test_pyramid_halves_its_channels_but_to_no_fewer_than_are_wanted(channels: int, widths: list[int]) -> None:
    (layer,) = PyramidAdapter((Level(32, channels),), NECK[:1]).layers
    assert [part.out_channels for part in layer if isinstance(part, nn.ConvTranspose2d)] == widths


def test_there_are_32_groups_or_as_many_as_divide_the_channels() -> None:
    assert [make_norm(channels, "group").num_groups for channels in (256, 48, 8, 21)] == [32, 16, 8, 1]


@pytest.mark.parametrize(("stride", "nearest"), [(4, 8), (8, 8), (11, 8), (12, 16), (16, 16), (64, 32)])
def test_the_nearest_level_is_the_one_closest_by_factor(stride: int, nearest: int) -> None:
    assert nearest_level(NECK, stride).stride == nearest


def test_of_two_equally_near_levels_the_finer_is_taken() -> None:
    assert nearest_level((Level(8, 1), Level(32, 1)), 16).stride == 8


def depends_on(output: Tensor, given: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(output.sum(), given, retain_graph=True)
    return bool(gradient.abs().max() > 0)


def test_each_output_of_fusion_sees_each_level_and_that_of_conv_its_own() -> None:
    pyramid = {stride: level.requires_grad_() for stride, level in features(NECK).items()}
    fused = FusionAdapter(NECK, NECK)(pyramid, SIZE)
    alone = ConvAdapter(NECK, NECK)(pyramid, SIZE)
    for wanted in alone:
        for given in pyramid:
            (gradient,) = torch.autograd.grad(alone[wanted].sum(), pyramid[given], retain_graph=True, allow_unused=True)
            assert (gradient is not None) == (wanted == given)
            assert depends_on(fused[wanted].square(), pyramid[given])


def test_the_coarsest_output_of_fusion_sees_the_whole_image() -> None:
    size = (640, 640)
    pyramid = {32: torch.rand(1, 32, 20, 20, requires_grad=True)}
    for kind, sees in ((FusionAdapter, True), (ConvAdapter, False)):
        adapted = kind((Level(32, 32),), (Level(32, 64),), depth=2).eval()(pyramid, size)
        (gradient,) = torch.autograd.grad(adapted[32][0, :, 0, 0].square().sum(), pyramid[32])
        assert bool(gradient[0, :, -1, -1].abs().max() > 0) == sees


@pytest.mark.parametrize("outputs", [NECK, NECK[::-1]], ids=["fine to coarse", "coarse to fine"])
def test_no_other_output_of_fusion_pools_over_the_image(outputs: tuple[Level, ...]) -> None:
    pools = [
        any(isinstance(part, nn.MaxPool2d) for part in layer.modules()) for layer in FusionAdapter(NECK, outputs).layers
    ]
    assert pools == [level.stride == 32 for level in outputs]


def test_projecting_before_growing_is_the_same_as_after_it() -> None:
    """What the fusion adapter relies on when it takes the cheaper order."""
    project, coarse = nn.Conv2d(6, 4, 1), torch.rand(1, 6, 5, 7)
    assert torch.allclose(project(resampled(coarse, (20, 28))), resampled(project(coarse), (20, 28)), atol=1e-5)


def test_batchnorms_are_those_of_yolov5() -> None:
    norms = [part for part in FusionAdapter(NECK, NECK).modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", nn.Identity)])
@pytest.mark.parametrize("name", ["conv", "pyramid", "fusion"])
def test_the_norm_is_the_named_one(name: str, norm: str, kind: type[nn.Module]) -> None:
    for inputs in (NECK, NECK[2:]):
        adapters = make_adapters(AdaptersConfig.model_validate({"type": name, "norm": norm}), inputs, NECK)
        found = {type(part) for part in adapters.modules() if isinstance(part, nn.BatchNorm2d | nn.GroupNorm)}
        assert found == ({kind} - {nn.Identity})
        assert shapes(adapters(features(inputs), SIZE)) == shapes(features(NECK))


def count_3x3(adapters: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in adapters.modules())


def test_depth_counts_the_convolutions_of_each_level() -> None:
    for depth in (1, 2, 3):
        assert count_3x3(make_adapters(AdaptersConfig(type="conv", depth=depth), NECK, NECK)) == 3 * (depth - 1)


def test_a_depth_that_nobody_wrote_is_the_types_own() -> None:
    assert count_3x3(make_adapters(AdaptersConfig(type="conv"), NECK, NECK)) == 0
    assert count_3x3(make_adapters(AdaptersConfig(type="pyramid"), NECK, NECK)) == 3
    assert count_3x3(make_adapters(AdaptersConfig(type="pyramid", depth=1), NECK, NECK)) == 0


def test_a_wider_fusion_has_so_many_channels_in_between_and_a_linear_end() -> None:
    (layer, *_) = make_adapters(AdaptersConfig(type="fusion", width=1), NECK, NECK).layers
    assert [type(part) for part in layer.refine] == [nn.Sequential, ChannelAffine]
    (layer, *_) = make_adapters(AdaptersConfig(type="fusion", width=3), NECK, NECK).layers
    assert [project.out_channels for project in layer.project] == [3 * 64] * 3
    inner, last, affine = layer.refine
    assert (inner[0].in_channels, inner[0].out_channels) == (3 * 64, 3 * 64)
    assert (last.in_channels, last.out_channels, last.kernel_size) == (3 * 64, 64, (1, 1))
    assert isinstance(affine, ChannelAffine), "what statistics are matched by"
    with pytest.raises(ConfigError, match="width is of type: fusion; conv has none"):
        AdaptersConfig(type="conv", width=2)
    with pytest.raises(ConfigError, match="less than or equal to 64"):
        AdaptersConfig(type="fusion", width=100_000)
    with pytest.raises(ConfigError, match=r"arguments: width: 1\.5: expected a whole number from 1"):
        AdaptersConfig(type="fusion", arguments={"width": 1.5})


def test_adapters_start_without_changing_what_their_activation_gave() -> None:
    affines = [part for part in FusionAdapter(NECK, NECK).modules() if isinstance(part, ChannelAffine)]
    assert len(affines) == 3
    given = torch.rand(2, 64, 3, 3)
    assert torch.equal(affines[0](given), given)


class Mine(nn.Module):
    """Zeros."""

    def __init__(self, inputs: tuple[Level, ...], outputs: tuple[Level, ...], *, value: float = 0.0) -> None:
        super().__init__()
        self.outputs, self.value = outputs, value

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Pyramid:
        return {
            level.stride: torch.full((1, level.channels, size[0] // level.stride, size[1] // level.stride), self.value)
            for level in self.outputs
        }


def test_a_class_of_ones_own_comes_in_by_name_with_its_arguments() -> None:
    config = AdaptersConfig(type="mine", arguments={"value": 3.0})
    adapters = make_adapters(config, NECK, NECK, ADAPTERS | {"mine": Mine})
    assert adapters({}, SIZE)[32].unique().tolist() == [3.0]


def test_a_class_named_by_its_import_path_needs_trust() -> None:
    config = AdaptersConfig(type="test_adapters:Mine")
    with pytest.raises(ConfigError, match=r"adapters\.type: test_adapters:Mine would import code"):
        make_adapters(config, NECK, NECK)
    assert type(make_adapters(config, NECK, NECK, trust=True)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"type": "piramid"}, r"unknown adapter 'piramid'; did you mean 'pyramid'\?"),
        ({"type": "zzz"}, "unknown adapter 'zzz'; known: identity, conv, pyramid, fusion"),
        ({"type": "conv", "arguments": {"dept": 2}}, "adapters: conv: .*unexpected keyword argument 'dept'"),
        ({"type": "conv", "arguments": {"norm": "layer"}}, "unknown norm 'layer'; known: batch, group, none"),
    ],
)
def test_wrong_adapters_are_named(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_adapters(AdaptersConfig.model_validate(config), NECK, NECK)


@pytest.mark.parametrize(
    "adapters",
    [{"type": kind, "depth": depth} for kind in ("conv", "pyramid", "fusion") for depth in (None, 1, 3)]
    + [{"type": "fusion", "width": 2}],
)
def test_a_model_is_the_same_again_from_its_weights(adapters: dict[str, Any], tmp_path: Path) -> None:
    config = {
        "extractor": {"name": "features", "levels": {8: 8, 16: 8}},
        "adapters": adapters,
        "detector": {"graph": "yolov5n.yaml"},
    }
    model = build(config)
    again = load(save_weights(model, tmp_path / "weights.safetensors"))
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    # Earlier versions noted depth 1 where nobody had written one.
    noted = model.config.adapters.model_copy(update={"depth": 1})
    model.config = model.config.model_copy(update={"adapters": noted})
    if adapters["type"] != "conv":
        load(save_weights(model, tmp_path / "earlier.safetensors"))


@pytest.mark.parametrize("kind", ["conv", "pyramid", "fusion"])
def test_what_comes_in_channels_last_stays_so(kind: str) -> None:
    adapters = make_adapters(AdaptersConfig(type=kind), NECK, NECK).to(memory_format=torch.channels_last)
    seen: list[bool] = []
    for module in adapters.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, output: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    pyramid = {n: level.contiguous(memory_format=torch.channels_last) for n, level in features(NECK).items()}
    adapters(pyramid, SIZE)
    assert seen
    assert all(seen)
