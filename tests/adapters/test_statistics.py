"""After matching, adapters give the mean and the variance that the replaced layers gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtyolo.adapters import make_adapters
from mtyolo.adapters.statistics import Moments, match_statistics, moments
from mtyolo.assembly import build
from mtyolo.config.model import AdaptersConfig
from mtyolo.errors import ConfigError
from mtyolo.original_layers import alignment_teacher
from mtyolo.structures import Level, Pyramid

INPUTS = (Level(8, 24), Level(16, 40))
NECK = (Level(8, 64), Level(16, 128), Level(32, 256))
SIZE = (96, 128)


def batches(count: int = 3) -> list[Pyramid]:
    """Features with a mean and a spread of their own in each channel."""
    return [
        {
            level.stride: torch.randn(2, level.channels, SIZE[0] // level.stride, SIZE[1] // level.stride)
            * torch.linspace(0.1, 4, level.channels)[:, None, None]
            + torch.linspace(-2, 2, level.channels)[:, None, None]
            for level in INPUTS
        }
        for _ in range(count)
    ]


def wanted_moments() -> Moments:
    return {level.stride: (torch.randn(level.channels), torch.rand(level.channels) + 0.01) for level in NECK}


@torch.no_grad()
def outputs(adapters: nn.Module, pyramids: list[Pyramid]) -> list[Pyramid]:
    return [adapters(pyramid, SIZE) for pyramid in pyramids]


def test_moments_are_those_of_all_batches_together() -> None:
    pyramids = [{8: torch.randn(count, 5, 6, 7) * 3 + 100} for count in (1, 4, 2)]
    mean, variance = moments(pyramids)[8]
    joined = torch.cat([pyramid[8] for pyramid in pyramids]).double()
    np.testing.assert_allclose(mean, joined.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(variance, joined.var((0, 2, 3), correction=0), rtol=1e-5)


def test_what_never_changes_has_no_variance_below_zero() -> None:
    """Rounding takes it there in some of these channels, and of that there is no root."""
    _, variance = moments([{8: torch.linspace(0.1, 4, 64).expand(3, 7, 7, 64).permute(0, 3, 1, 2)}])[8]
    assert variance.min() == 0
    assert variance.max() < 1e-12


@pytest.mark.parametrize("kind", ["conv", "pyramid", "fusion"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_matched_adapters_have_the_wanted_mean_and_variance(kind: str, norm: str) -> None:
    config = AdaptersConfig.model_validate({"type": kind, "norm": norm, "depth": 2})
    adapters, pyramids, wanted = make_adapters(config, INPUTS, NECK).eval(), batches(), wanted_moments()
    match_statistics(adapters, moments(outputs(adapters, pyramids)), wanted)
    for stride, (mean, variance) in moments(outputs(adapters, pyramids)).items():
        spread = wanted[stride][1].sqrt()
        assert ((mean - wanted[stride][0]).abs() / spread).max() < 0.02
        np.testing.assert_allclose(variance, wanted[stride][1], rtol=0.02)


def test_matching_again_changes_nothing() -> None:
    adapters, pyramids, wanted = make_adapters(AdaptersConfig(), INPUTS, NECK).eval(), batches(), wanted_moments()
    match_statistics(adapters, moments(outputs(adapters, pyramids)), wanted)
    before = {name: tensor.clone() for name, tensor in adapters.state_dict().items()}
    match_statistics(adapters, moments(outputs(adapters, pyramids)), wanted)
    for name, tensor in adapters.state_dict().items():
        np.testing.assert_allclose(tensor, before[name], rtol=1e-3, atol=1e-4)


def test_a_channel_that_says_nothing_gets_the_mean_and_no_noise() -> None:
    adapters, wanted = make_adapters(AdaptersConfig(norm="none"), INPUTS, NECK).eval(), wanted_moments()
    with torch.no_grad():
        convolution = adapters.layers[0][0][0]  # type: ignore[index]
        convolution.weight[7] = 0
    pyramids = batches()
    match_statistics(adapters, moments(outputs(adapters, pyramids)), wanted)
    mean, variance = moments(outputs(adapters, pyramids))[8]
    assert mean[7] == pytest.approx(float(wanted[8][0][7]), abs=1e-3)
    assert variance[7] < 1e-6
    assert mean.isfinite().all()


def test_adapters_without_a_scale_are_refused() -> None:
    adapters = make_adapters(AdaptersConfig(type="identity"), NECK, NECK)
    with pytest.raises(ConfigError, match="no scale to set; use conv, pyramid or fusion"):
        match_statistics(adapters, wanted_moments(), wanted_moments())


def test_untrained_adapters_get_the_statistics_of_the_official_layers(test_data: Path) -> None:
    config = {
        "extractor": {"name": "features", "levels": {8: 24, 16: 40}},
        "adapters": {"type": "fusion"},
        "detector": {"graph": "yolov5n.yaml"},
    }
    model = build(config, weights=test_data / "weights/yolov5n.pt").eval()
    photos = np.load(test_data / "reference/yolov5n_loss_reference.npz")["images"][:, :, : SIZE[0], : SIZE[1]]
    pyramids = batches(2)
    wanted = moments([alignment_teacher(model)(torch.from_numpy(photos) / 255)])
    assert model.adapters is not None
    match_statistics(model.adapters, moments(outputs(model.adapters, pyramids)), wanted)
    for stride, (mean, variance) in moments(outputs(model.adapters, pyramids)).items():
        np.testing.assert_allclose(mean, wanted[stride][0], atol=0.02)
        np.testing.assert_allclose(variance, wanted[stride][1], rtol=0.05, atol=1e-4)
