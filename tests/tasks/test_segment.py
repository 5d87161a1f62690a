"""Mask loss and mask decoding against loops over objects and pixels."""

from __future__ import annotations

import pytest
import torch
from scene import HEIGHT, WIDTH, Scene, make_scene

from mtyolo.config.training import LossGains
from mtyolo.structures import Assignment, Letterbox, Level, MaskOutputs, Matches
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.segment import loss as segment_module
from mtyolo.tasks.segment.branch import SegmentBranch
from mtyolo.tasks.segment.decode import compose_masks
from mtyolo.tasks.segment.loss import segment_loss

GAINS = LossGains(mask=1)


def mask_loss(scene: Scene) -> torch.Tensor:
    assert scene.outputs.segment is not None
    assignment = assign(scene.anchors, scene.strides, scene.shapes, scene.targets)
    return segment_loss(scene.outputs.segment, assignment, scene.targets, GAINS)["segment.mask"]


def by_hand(scene: Scene) -> torch.Tensor:
    outputs, targets = scene.outputs.segment, scene.targets
    assert outputs is not None
    assert targets.masks is not None
    total = torch.zeros(())
    height, width = outputs.prototypes.shape[2:]
    for coefficients, matches in zip(
        outputs.coefficients, assign(scene.anchors, scene.strides, scene.shapes, targets).levels, strict=True
    ):
        losses = []
        for image, anchor, row, column, number in zip(*matches[:5], strict=True):
            if not targets.masks[number].any() or not targets.labelled["segment"][image]:
                continue
            values = coefficients[image, anchor, row, column]
            probability = (values[:, None, None] * outputs.prototypes[image]).sum(0).sigmoid()
            cx, cy, w, h = (targets.boxes_cxcywh[number] * torch.tensor([width, height] * 2)).tolist()
            loss = torch.zeros(())
            for y in range(height):
                for x in range(width):
                    if abs(x + 0.5 - cx) < w / 2 and abs(y + 0.5 - cy) < h / 2:
                        p = probability[y, x]
                        loss = loss - torch.log(p if targets.masks[number, y, x] else 1 - p)
            losses.append(loss / max(1.0, w * h))
        if losses:
            total = total + torch.stack(losses).mean()
    return total


def with_gaps() -> Scene:
    """Objects without a mask, an image not labelled."""
    scene = make_scene(objects=8, seed=5)
    scene.targets.masks[::3] = 0
    scene.targets.labelled["segment"][1] = False
    return scene


def test_mask_loss_is_the_cross_entropy_in_the_box_over_its_area() -> None:
    scene = with_gaps()
    loss, expected = mask_loss(scene), by_hand(scene)
    torch.testing.assert_close(loss, expected)
    leaves = [*scene.outputs.segment.coefficients, scene.outputs.segment.prototypes]
    for got, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pictures", [1, 3, 20, 500])
def test_mask_loss_does_not_depend_on_how_much_is_composed_at_once(
    pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(objects=9, seed=5)
    leaves = [*scene.outputs.segment.coefficients, scene.outputs.segment.prototypes]
    expected = mask_loss(scene)
    gradients = torch.autograd.grad(expected, leaves)
    monkeypatch.setitem(segment_module.CHUNK_PIXELS, "cpu", pictures * 24 * 32)
    loss = mask_loss(scene)
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(torch.autograd.grad(loss, leaves), gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("most", [1, 4, 7, 100])
@pytest.mark.parametrize("counts", [[0], [3], [0, 9, 1, 1, 0, 4], [2] * 8, [30, 0, 0, 1]])
def test_spans_hold_every_pair_once_and_no_more_than_fits(counts: list[int], most: int) -> None:
    found, last = [0] * len(counts), 0
    for first, pairs in segment_module._spans(counts, most):
        assert len(pairs) * max(pairs) <= most
        assert first >= last, "pairs stay in the order of their images"
        last = first
        for image, count in enumerate(pairs, first):
            found[image] += count
    assert found == counts


def test_masks_of_another_size_than_the_prototypes_are_resized(scene: Scene) -> None:
    """A graph with a stride-4 level has prototypes at half the input's size, masks stay at a quarter."""
    outputs, masks = scene.outputs.segment, scene.targets.masks
    finer = torch.nn.functional.interpolate(outputs.prototypes, scale_factor=2, mode="nearest")
    scene = scene._replace(outputs=scene.outputs._replace(segment=MaskOutputs(outputs.coefficients, finer)))
    loss = mask_loss(scene)
    scene.targets.masks = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(loss, mask_loss(scene))


def test_a_box_smaller_than_a_mask_pixel_costs_what_that_pixel_costs(scene: Scene) -> None:
    targets, zero = scene.targets, torch.zeros(1, dtype=torch.int64)
    targets.image_index[0] = 0
    targets.boxes_cxcywh[0] = torch.tensor([30 / WIDTH, 22 / HEIGHT, 2 / WIDTH, 2 / HEIGHT])
    targets.masks[0, 5, 7] = 1
    one = Matches(*[zero] * 5, torch.ones(1, 4))
    none = Matches(*(part[:0] for part in one))
    loss = segment_loss(scene.outputs.segment, Assignment([one, none, none]), targets, GAINS)
    logit = scene.outputs.segment.coefficients[0][0, 0, 0, 0] @ scene.outputs.segment.prototypes[0, :, 5, 7]
    torch.testing.assert_close(loss["segment.mask"], torch.nn.functional.softplus(-logit))


def test_prototype_network_has_the_official_number_of_parameters() -> None:
    """yolov5n-seg: 1,991,549 parameters, yolov5n: 1,872,157; the difference is prototypes and coefficients."""
    branch = SegmentBranch((Level(8, 64), Level(16, 128), Level(32, 256)), 3, prototypes=32, channels=64)
    assert sum(parameter.numel() for parameter in branch.parameters()) == 1_991_549 - 1_872_157
    outputs = branch({stride: torch.rand(2, 8 * stride, 64 // stride, 96 // stride) for stride in (8, 16, 32)})
    assert outputs.prototypes.shape == (2, 32, 16, 24)
    assert [tuple(level.shape) for level in outputs.coefficients] == [
        (2, 3, 8, 12, 32), (2, 3, 4, 6, 32), (2, 3, 2, 3, 32)]  # fmt: skip


def disc(height: int, width: int, centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Signed distance to a circle's edge in pixels, positive inside."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return radius - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).sqrt()


def test_masks_come_back_at_original_pixels() -> None:
    """A disc in a photo of 120 x 200, letterboxed into 64 x 64: the mask lies on the disc."""
    letterbox = Letterbox(ratio=64 / 200, left=0, top=13, height=120, width=200)
    truth = disc(120, 200, (140, 50), 35)
    x, y = 140 * letterbox.ratio, 50 * letterbox.ratio + letterbox.top
    prototypes = disc(16, 16, (x / 4, y / 4), 35 * letterbox.ratio / 4)[None]
    boxes = torch.tensor([[105.0, 15, 175, 85], [105, 15, 140, 85]])
    masks = compose_masks(torch.full((2, 1), 8.0), prototypes, boxes, size=(64, 64), letterbox=letterbox)
    assert masks.shape == (2, 120, 200)
    wrong = masks[0] != (truth > 0)
    prototype_pixel = 4 / letterbox.ratio  # in original pixels: 12.5
    assert truth[wrong].abs().max() < prototype_pixel / 4
    assert masks[0].sum().item() == pytest.approx(torch.pi * 35**2, rel=0.03)
    assert torch.equal(masks[1][:, :140], masks[0][:, :140])
    assert not masks[1][:, 140:].any()


def test_masks_without_a_letterbox_are_those_of_a_bilinear_upsampling() -> None:
    torch.manual_seed(0)
    coefficients, prototypes = torch.randn(3, 4), torch.randn(4, 12, 16)
    full = torch.tensor([[0.0, 0, 64, 48]]).repeat(3, 1)
    small = (coefficients @ prototypes.flatten(1)).view(3, 12, 16).sigmoid()
    large = torch.nn.functional.interpolate(small[None], (48, 64), mode="bilinear")[0]
    assert torch.equal(compose_masks(coefficients, prototypes, full, size=(48, 64)), large > 0.5)


def test_boxes_outside_the_picture_have_empty_masks() -> None:
    boxes = torch.tensor([[-20.0, -20, -5, -5], [70, 10, 90, 20], [10, 10, 10, 30]])
    masks = compose_masks(torch.ones(3, 4), torch.ones(4, 12, 16), boxes, size=(48, 64))
    assert masks.shape == (3, 48, 64)
    assert not masks.any()
