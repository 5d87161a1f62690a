"""Heat-maps: windows, what is learned in them and how points are found, against loops and torch's own sampling."""

from __future__ import annotations

import math

import pytest
import torch
from scene import Scene
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.structures import KeypointOutputs, Level
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.keypoint.branch import KeypointBranch
from mtyolo.tasks.keypoint.heatmaps import CELLS, LABEL_SPREAD, REACH, cell_centres, divergence, place, refine, windows
from mtyolo.tasks.keypoint.loss import keypoint_loss

SIZE = (96, 128)
BOX = torch.tensor([[64.0, 48, 40, 60]])
SIGMAS = torch.tensor([0.05, 0.1])
POINT_SIGMAS = torch.full((3,), 0.05)


def bump(x: float, y: float, height: float = 12.0, spread: float = 5.0) -> Tensor:
    """[96, 128] logits with a peak at a place in pixels."""
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    return height * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))


def found(maps: Tensor, points: list[list[float]], box: Tensor = BOX) -> list[list[float]]:
    """Where the points of one object are, by maps [K, 96, 128] and what its row says, in pixels."""
    logits = windows(maps[None], torch.tensor([0]), box, SIZE)
    return refine(torch.tensor([points]), box, logits, SIGMAS)[0].tolist()


@pytest.mark.parametrize("cell", [1, 8])
def test_windows_are_what_torch_samples_there(cell: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, SIZE[0] // cell, SIZE[1] // cell)
    image, boxes = torch.tensor([1, 0, 1]), torch.tensor([[64.0, 48, 40, 60], [5, 90, 30, 10], [100, 20, 3, 90]])
    for number, logits in enumerate(windows(maps, image, boxes, SIZE)):
        centre, sides = boxes[number].split(2)
        places = centre + torch.cartesian_prod(cell_centres(boxes), cell_centres(boxes)).flip(1) * sides
        grid = (places / torch.tensor([128.0, 96]) * 2 - 1).view(1, CELLS, CELLS, 2)
        expected = F.grid_sample(maps[image[number]][None], grid, padding_mode="border", align_corners=False)
        torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)


def test_what_is_wanted_is_a_normal_density_and_agreeing_with_it_costs_nothing() -> None:
    points = torch.tensor([[[70.0, 40], [50, 60]]])
    wanted = place(points, BOX, SIGMAS, LABEL_SPREAD).bumps().view(1, 2, CELLS, CELLS)
    for k, sigma in enumerate(SIGMAS.tolist()):
        deviation = LABEL_SPREAD * sigma * math.sqrt(40 * 60)  # pixels
        cells = torch.tensor(
            [
                [
                    math.exp(-((x - points[0, k, 0]) ** 2 + (y - points[0, k, 1]) ** 2) / (2 * deviation**2))
                    for x in (64 + 40 * cell_centres(BOX)).tolist()
                ]
                for y in (48 + 60 * cell_centres(BOX)).tolist()
            ]
        )
        torch.testing.assert_close(wanted[0, k].exp(), cells / cells.sum(), rtol=1e-3, atol=1e-6)
    logits = (wanted + 3).requires_grad_()  # a softmax does not mind
    loss = divergence(logits, wanted.flatten(2)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    assert (divergence(torch.zeros_like(wanted), wanted.flatten(2)) > 0.5).all()


def test_a_bump_smaller_than_a_cell_is_still_one_in_sum() -> None:
    wanted = place(torch.tensor([[[64.0, 48.0]]]), BOX, torch.tensor([1e-4]), LABEL_SPREAD).bumps()
    assert wanted.exp().sum().item() == pytest.approx(1)
    assert wanted.isfinite().all()


def test_maps_that_say_nothing_leave_the_rows_points() -> None:
    points = [[70.0, 40.0], [51.0, 62.0]]
    for point, expected in zip(found(torch.zeros(2, 96, 128), points), points, strict=True):
        assert point == pytest.approx(expected, abs=2)  # of a box of 40 x 60; the window cuts the density's tail


def test_a_sure_map_moves_a_point_to_its_peak() -> None:
    maps = torch.stack((bump(57, 66), bump(75, 31)))
    first, second = found(maps, [[64.0, 60.0], [66.0, 40.0]])
    assert first == pytest.approx([57, 66], abs=0.7)
    assert second == pytest.approx([75, 31], abs=0.7)


def test_of_two_places_one_is_taken_and_never_the_middle() -> None:
    maps = torch.stack((bump(50, 48, 12.0), torch.zeros(96, 128))) + torch.stack(
        (bump(78, 48, 12.5), torch.zeros(96, 128))
    )
    assert found(maps, [[64.0, 48.0], [64.0, 48.0]])[0] == pytest.approx([78, 48], abs=1)


def test_between_alike_places_the_row_decides() -> None:
    maps = (bump(50, 48) + bump(78, 48))[None].expand(2, -1, -1)
    left, right = found(maps, [[54.0, 48.0], [73.0, 48.0]])
    assert left == pytest.approx([50, 48], abs=1)
    assert right == pytest.approx([78, 48], abs=1)


def test_the_place_is_the_one_of_the_highest_expected_similarity() -> None:
    """Against a loop over places a third of a pixel apart, with random maps. A cell is 1.5 by 2.3 pixels."""
    torch.manual_seed(0)
    logits, points = 3 * torch.randn(1, 2, CELLS, CELLS), torch.tensor([[[60.0, 50], [70, 30]]])
    fine = torch.linspace(-REACH / 2, REACH / 2, 150)
    centres = cell_centres(BOX)
    x, y = 64 + 40 * centres, 48 + 60 * centres
    for k, sigma in enumerate(SIGMAS.tolist()):
        scale, rows = (2 * share * 40 * 60 * (2 * sigma) ** 2 for share in (0.53, 1))
        squared = (x[None, :] - points[0, k, 0]) ** 2 + (y[:, None] - points[0, k, 1]) ** 2
        believed = (logits[0, k] - torch.log1p(squared / rows)).flatten().softmax(0).view(CELLS, CELLS)
        best, there = -1.0, [0.0, 0.0]
        for to_y in (48 + 60 * fine).tolist():
            for to_x in (64 + 40 * fine).tolist():
                along_x, along_y = torch.exp(-((x - to_x) ** 2) / scale), torch.exp(-((y - to_y) ** 2) / scale)
                similarity = float(along_y @ believed @ along_x)
                if similarity > best:
                    best, there = similarity, [to_x, to_y]
        assert refine(points, BOX, logits, SIGMAS)[0, k].tolist() == pytest.approx(there, abs=0.6)


def test_points_of_tiny_and_of_no_boxes_are_finite() -> None:
    boxes = torch.tensor([[64.0, 48, 0, 0], [3, 3, 0.5, 90]])
    logits = windows(torch.randn(1, 2, 12, 16), torch.tensor([0, 0]), boxes, SIZE)
    assert refine(torch.randn(2, 2, 2) * 1e4, boxes, logits, SIGMAS).isfinite().all()
    assert all(part.isfinite().all() for part in place(torch.randn(2, 2, 2), boxes, SIGMAS, LABEL_SPREAD))
    none = windows(torch.randn(1, 2, 12, 16), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), SIZE)
    assert refine(torch.zeros(0, 2, 2), torch.zeros(0, 4), none, SIGMAS).shape == (0, 2, 2)


def heatmap_loss(scene: Scene, heatmaps: Tensor | None) -> Tensor:
    outputs = KeypointOutputs([level.detach() for level in scene.outputs.keypoint.points], heatmaps)
    assignment = assign(scene.anchors, scene.strides, scene.shapes, scene.targets)
    gains = LossGains(heatmap=1)
    maps = scene.outputs.detect
    return keypoint_loss(outputs, maps, assignment, scene.targets, scene.anchors, scene.strides, gains, POINT_SIGMAS)[
        "keypoint.heatmap"
    ]


def test_learned_maps_lead_to_the_labels(scene: Scene) -> None:
    """Gradient descent on the maps themselves: then every labelled point is found, wherever the rows are."""
    for name in ("image_index", "classes", "boxes_cxcywh", "masks", "keypoints"):
        setattr(scene.targets, name, getattr(scene.targets, name)[:1])
    maps = torch.zeros(4, 3, 96, 128, requires_grad=True)
    optimizer = torch.optim.Adam([maps], 0.5)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = heatmap_loss(scene, maps)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
    pixels = torch.tensor([128.0, 96])
    boxes = scene.targets.boxes_cxcywh * torch.cat((pixels, pixels))
    logits = windows(maps.detach(), scene.targets.image_index, boxes, SIZE)
    points = refine(boxes[:, None, :2].expand(-1, 3, -1), boxes, logits, POINT_SIGMAS)
    seen = scene.targets.keypoints[..., 2] > 0
    wanted = scene.targets.keypoints[..., :2] * pixels
    off = (points - wanted).abs() / boxes[:, None, 2:]
    assert off[seen].max() < 0.05


def test_points_outside_of_the_window_teach_the_maps_nothing(scene: Scene) -> None:
    boxes = scene.targets.boxes_cxcywh
    scene.targets.keypoints[..., :2] = boxes[:, None, :2] + boxes[:, None, 2:] * (REACH / 2 + 0.01)
    maps = torch.randn(4, 3, 12, 16, requires_grad=True)
    loss = heatmap_loss(scene, maps)
    loss.backward()
    assert loss.item() == 0
    assert maps.grad is not None
    assert not maps.grad.any()


def test_the_branch_sees_what_the_neck_took_in_and_starts_undecided() -> None:
    levels, taken = (Level(8, 16), Level(16, 32)), (Level(8, 24), Level(32, 40))
    branch = KeypointBranch(levels, 3, 5, taken=taken)
    fused = {8: torch.rand(2, 16, 8, 12), 16: torch.rand(2, 32, 4, 6)}
    given = {8: torch.rand(2, 24, 8, 12).requires_grad_(), 32: torch.rand(2, 40, 2, 3).requires_grad_()}
    maps = branch(fused, given).heatmaps
    assert maps.shape == (2, 5, 8, 12)
    assert 0 < maps.abs().max() < 0.5
    maps.square().sum().backward()
    assert all(level.grad.any() for level in given.values())


def test_without_heatmaps_there_are_none() -> None:
    branch = KeypointBranch((Level(8, 16),), 3, 5, heatmaps=False)
    assert branch({8: torch.rand(1, 16, 4, 4)}).heatmaps is None
    assert not any("heatmaps" in name for name in branch.state_dict())
