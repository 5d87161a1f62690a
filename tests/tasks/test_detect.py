"""The detect branch, its decoding and the parts of its loss that the official reference does not reach."""

from __future__ import annotations

import math

import pytest
import torch

from mtyolo.config.training import LossGains
from mtyolo.geometry import complete_iou
from mtyolo.structures import Level, Targets
from mtyolo.tasks import official_gains
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.branch import DetectBranch
from mtyolo.tasks.detect.decode import decode
from mtyolo.tasks.detect.loss import detect_loss
from mtyolo.tasks.maps import box_of

ANCHORS = [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]
LEVELS = (Level(8, 4), Level(16, 6))


def features(channels_last: bool = False) -> dict[int, torch.Tensor]:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return {8: torch.rand(2, 4, 6, 10).to(memory_format=memory), 16: torch.rand(2, 6, 3, 5).to(memory_format=memory)}


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_hold_what_the_convolution_says_of_each_anchor(channels_last: bool) -> None:
    branch = DetectBranch(LEVELS, 3, ANCHORS)
    fused = features(channels_last)
    maps = branch(fused)
    assert [tuple(level.shape) for level in maps] == [(2, 2, 6, 10, 8), (2, 2, 3, 5, 8)]
    raw = branch.layers[1](fused[16])
    assert maps[1][1, 1, 2, 4, 6] == raw[1, 8 + 6, 2, 4]


def test_a_fresh_branch_expects_eight_objects_in_a_640_image() -> None:
    torch.manual_seed(0)
    branch = DetectBranch((Level(8, 512), Level(16, 512)), 80, ANCHORS)
    for stride, layer in zip((8, 16), branch.layers, strict=True):
        bias = layer.bias.view(2, 85)
        # The convolution's own random bias, at most 1 / sqrt(512), stays.
        assert bias[:, 4].sigmoid().mean().item() == pytest.approx(8 / (640 / stride) ** 2, rel=0.05)
        assert bias[:, 5:].exp().mean().item() == pytest.approx(0.6 / 79, rel=0.05)
    assert DetectBranch(LEVELS, 1, ANCHORS).layers[0].bias.view(2, 6)[:, 5].sigmoid().min() > 0.999


def test_decoded_rows_are_boxes_in_pixels_and_sigmoid_scores() -> None:
    maps = [torch.randn(1, 2, 6, 10, 8), torch.randn(1, 2, 3, 5, 8)]
    decoded = decode(maps, torch.tensor(ANCHORS), [8, 16])
    assert decoded.shape == (1, 2 * 60 + 2 * 15, 8)
    values = [1 / (1 + math.exp(-value)) for value in maps[1][0, 1, 2, 3].tolist()]
    expected = [
        (2 * values[0] - 0.5 + 3) * 16,
        (2 * values[1] - 0.5 + 2) * 16,
        (2 * values[2]) ** 2 * 62,
        (2 * values[3]) ** 2 * 45,
        *values[4:],
    ]
    assert decoded[0, 2 * 60 + 15 + 2 * 5 + 3].tolist() == pytest.approx(expected, rel=1e-5)


def test_decode_passes_torch_export() -> None:
    class Decoded(torch.nn.Module):
        def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
            return decode([fine, coarse], torch.tensor(ANCHORS), [8, 16])

    maps = (torch.randn(1, 2, 6, 10, 8), torch.randn(1, 2, 3, 5, 8))
    exported = torch.export.export(Decoded(), maps).module()
    torch.testing.assert_close(exported(*maps), decode(list(maps), torch.tensor(ANCHORS), [8, 16]))


def one_level(objects: torch.Tensor, classes: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses on one 4 x 4 map of one anchor of 32 pixels at stride 16; all raw values zero."""
    maps = [torch.zeros(1, 1, 4, 4, 5 + classes, requires_grad=True)]
    anchors, targets = (
        torch.full((1, 1, 2), 32.0),
        Targets(*(torch.zeros(len(objects), dtype=torch.int64),) * 2, objects),
    )
    assignment = assign(anchors, [16], [(4, 4)], targets)
    gains = LossGains(box=1, objectness=1, classes=1)
    return maps[0], detect_loss(maps, assignment, targets, anchors, [16], gains)


def test_a_perfect_box_costs_nothing_and_an_untrained_class_ln2() -> None:
    # Centre in the middle of a cell: no neighbours. Raw zero decodes to the cell's centre and the anchor's size.
    _, losses = one_level(torch.tensor([[0.375, 0.375, 0.5, 0.5]]))
    assert losses["detect.box"].item() == pytest.approx(0, abs=1e-5)
    assert losses["detect.class"].item() == pytest.approx(math.log(2), rel=1e-6)
    # Objectness: ln 2 in each cell, whatever is wanted there; the finest level's balance is 4.
    assert losses["detect.objectness"].item() == pytest.approx(4 * math.log(2), rel=1e-6)


def test_a_single_class_has_no_class_loss() -> None:
    maps, losses = one_level(torch.tensor([[0.375, 0.375, 0.5, 0.5]]), classes=1)
    assert losses["detect.class"].item() == 0
    losses["detect.class"].backward(retain_graph=True)  # whoever looks at components may ask
    sum(losses.values()).backward()
    assert torch.equal(maps.grad[..., 5], torch.zeros(1, 1, 4, 4))


def test_of_two_objects_in_one_cell_the_later_one_sets_the_objectness() -> None:
    """As in the official code, where the last write wins; the gradient at the cell shows what was wanted there."""
    perfect, narrow = [0.375, 0.375, 0.5, 0.5], [0.375, 0.375, 0.25, 0.5]
    wanted = []
    for objects in ([perfect, narrow], [narrow, perfect]):
        maps, losses = one_level(torch.tensor(objects))
        losses["detect.objectness"].backward()
        # d BCE / d logit = (0.5 - wanted) / 16 cells, times the balance of 4.
        wanted.append(0.5 - maps.grad[0, 0, 1, 1, 4].item() * 16 / 4)
    assert wanted[1] == pytest.approx(1, abs=1e-4)
    # Half as wide: IoU 0.5, minus the aspect term of the complete IoU.
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    assert wanted[0] == pytest.approx(0.5 - aspect * aspect / (aspect + 0.5), abs=1e-4)


@pytest.mark.parametrize(("levels", "balance"), [(3, 5.4), (4, 5.31), (6, 5.35)])
def test_levels_weigh_as_in_the_official_loss(levels: int, balance: float) -> None:
    maps = [torch.zeros(1, 1, 4, 4, 7)] * levels
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    anchors, strides = torch.ones(levels, 1, 2), [8] * levels
    assignment = assign(anchors, strides, [(4, 4)] * levels, empty)
    found = detect_loss(maps, assignment, empty, anchors, strides, LossGains(objectness=1))
    assert found["detect.objectness"].item() == pytest.approx(balance * math.log(2))


def test_gains_scale_as_in_the_official_trainer() -> None:
    gains = official_gains(LossGains(), classes=20, size=320, levels=4)
    assert gains.box == pytest.approx(0.05 * 3 / 4)
    assert gains.classes == pytest.approx(0.5 * 20 / 80 * 3 / 4)
    assert gains.objectness == pytest.approx(1.0 * (320 / 640) ** 2 * 3 / 4)
    assert official_gains(LossGains(), classes=80, size=640, levels=3) == LossGains()


def test_boxes_that_have_lost_a_side_keep_finite_gradients_first_and_second() -> None:
    """A student that is taught by gradients drives sizes there, and differentiates the loss twice."""
    raw = 8 * torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    raw.requires_grad_()
    wanted = torch.rand(20000, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1, 10, 10]) + 0.01
    overlap = complete_iou(box_of(raw, torch.tensor([3.0, 4.0])), wanted)
    (first,) = torch.autograd.grad(overlap.sum(), raw, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), raw)
    assert box_of(raw, torch.tensor([3.0, 4.0]))[:, 2:].min() < 1e-20
    assert bool(first.isfinite().all())
    assert bool(second.isfinite().all())
