"""The keypoint branch, its points and its loss, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scene import Scene

from mtyolo.config.training import LossGains
from mtyolo.geometry import COCO_SIGMAS, default_sigmas
from mtyolo.structures import Assignment, KeypointOutputs, Level, Matches
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.decode import decode
from mtyolo.tasks.keypoint.branch import KeypointBranch
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.loss import keypoint_loss, oks_distance

GAINS = LossGains(location=1, visibility=1, heatmap=1)


def assigned(scene: Scene) -> Assignment:
    return assign(scene.anchors, scene.strides, scene.shapes, scene.targets)


def losses_of(scene: Scene, assignment: Assignment | None = None) -> dict[str, torch.Tensor]:
    return keypoint_loss(
        scene.outputs.keypoint,
        scene.outputs.detect,
        assignment or assigned(scene),
        scene.targets,
        scene.anchors,
        scene.strides,
        GAINS,
    )


def raw_for(scene: Scene, shift: tuple[float, float] = (0, 0)) -> list[torch.Tensor]:
    """Maps that decode to the labelled points, moved by `shift` in units of the object's root area."""
    maps = [torch.zeros_like(level) for level in scene.outputs.keypoint.points]
    size = torch.tensor([128.0, 96.0])
    for number, matches in enumerate(assigned(scene).levels):
        boxes = scene.targets.boxes_cxcywh[matches.object, 2:] * size
        points = scene.targets.keypoints[matches.object]
        wanted = points[..., :2] * size + torch.tensor(shift) * boxes.prod(1).sqrt()[:, None, None]
        predicted = predicted_boxes(scene, number, matches)
        offsets = (wanted - predicted[:, None, :2]) / predicted[:, None, 2:]
        logits = torch.where(points[..., 2:] > 0, 30.0, -30.0)
        values = torch.cat((offsets, logits), 2).flatten(1)
        maps[number][matches.image, matches.anchor, matches.row, matches.column] = values
    return maps


def predicted_boxes(scene: Scene, level: int, matches: Matches) -> torch.Tensor:
    """Where the detect branch's own decoding puts the boxes of a level's matches."""
    rows = decode(scene.outputs.detect, scene.anchors, scene.strides)
    counts = [math.prod(maps.shape[1:4]) for maps in scene.outputs.detect]
    rows = rows.split(counts, 1)[level].unflatten(1, scene.outputs.detect[level].shape[1:4])
    return rows[matches.image, matches.anchor, matches.row, matches.column, :4].detach()


def alone(scene: Scene) -> Scene:
    """One object, so that no cell is claimed twice."""
    targets = scene.targets
    for name in ("image_index", "classes", "boxes_cxcywh", "masks", "keypoints"):
        setattr(targets, name, getattr(targets, name)[:1])
    return scene


def test_perfect_points_and_visibility_cost_nothing(scene: Scene) -> None:
    scene = alone(scene)
    losses = losses_of(scene._replace(outputs=scene.outputs._replace(keypoint=KeypointOutputs(raw_for(scene)))))
    assert losses["keypoint.location"].item() == pytest.approx(0, abs=1e-4)
    assert losses["keypoint.visibility"].item() == pytest.approx(0, abs=1e-6)


def test_oks_distance_is_that_of_the_coco_evaluation() -> None:
    """pycocotools computeOks: e = (dx^2 + dy^2) / (2 sigma)^2 / area / 2."""
    torch.manual_seed(0)
    found, wanted, areas = torch.rand(4, 17, 2) * 50, torch.rand(4, 17, 2) * 50, torch.rand(4) * 900 + 10
    distances = oks_distance(found, wanted, areas, torch.tensor(default_sigmas(17)))
    for n in range(4):
        for k in range(17):
            dx, dy = (found[n, k] - wanted[n, k]).tolist()
            expected = (dx**2 + dy**2) / (2 * COCO_SIGMAS[k]) ** 2 / areas[n].item() / 2
            assert distances[n, k].item() == pytest.approx(expected, rel=1e-4)


def test_default_sigmas_are_cocos_for_17_points_and_else_equal() -> None:
    assert [default_sigmas(17)[point] for point in (0, 11, 16)] == pytest.approx([0.026, 0.107, 0.089])
    assert default_sigmas(5) == pytest.approx([0.2] * 5)


def test_points_are_measured_in_boxes_from_the_boxes_centre() -> None:
    raw = torch.tensor([[0.0, 0, 0, 1, -1, 2]])
    points, visibility = points_of(raw, torch.tensor([[20.0, 30, 10, 16]]))
    assert points.tolist() == [[[20, 30], [30, 14]]]
    assert visibility.tolist() == [[0, 2]]


def test_where_an_unlabelled_point_is_predicted_does_not_matter(scene: Scene) -> None:
    scene = alone(scene)
    scene.targets.keypoints[0, 1, 2] = 0
    maps = [level.detach().clone().requires_grad_() for level in scene.outputs.keypoint.points]
    losses = losses_of(scene._replace(outputs=scene.outputs._replace(keypoint=KeypointOutputs(maps))))
    sum(losses.values()).backward()
    assert all(not level.grad[..., 3:5].any() for level in maps)
    assert any(level.grad[..., 5].any() for level in maps)  # but that it is not visible is learned


def test_objects_without_a_labelled_point_are_left_out(scene: Scene) -> None:
    assignment = assigned(scene)
    scene.targets.keypoints[::2, :, 2] = 0
    kept = Assignment([Matches(*(part[matches.object % 2 == 1] for part in matches)) for matches in assignment.levels])
    for name, loss in losses_of(scene, assignment).items():
        torch.testing.assert_close(loss, losses_of(scene, kept)[name])


@pytest.mark.parametrize("hidden", [None, 0, 12])
def test_maps_have_three_values_a_point(hidden: int | None) -> None:
    branch = KeypointBranch((Level(8, 16), Level(16, 32)), 3, 5, hidden=hidden)
    maps = branch({8: torch.rand(2, 16, 4, 6), 16: torch.rand(2, 32, 2, 3)}).points
    assert [tuple(level.shape) for level in maps] == [(2, 3, 4, 6, 15), (2, 3, 2, 3, 15)]


@pytest.mark.parametrize("shift", [0.01, 0.05, 0.3])
def test_location_loss_of_points_that_are_all_off_alike(scene: Scene, shift: float) -> None:
    """ln(1 + e) with e = d^2 / (2 area (2 sigma)^2), summed over the levels that match; the default sigma is 1/3."""
    scene = alone(scene)
    matched = sum(len(matches.image) > 0 for matches in assigned(scene).levels)
    losses = losses_of(
        scene._replace(outputs=scene.outputs._replace(keypoint=KeypointOutputs(raw_for(scene, (shift, 0)))))
    )
    expected = matched * math.log(1 + shift**2 / (2 * (2 / 3) ** 2))
    assert losses["keypoint.location"].item() == pytest.approx(expected, rel=1e-3)
    similarity_lost = matched * (1 - math.exp(-(shift**2) / (2 * (2 / 3) ** 2)))
    assert losses["keypoint.location"].item() >= similarity_lost


def test_location_loss_grows_with_the_distance_and_never_stops_pulling(scene: Scene) -> None:
    scene = alone(scene)
    found = []
    for shift in (0.0, 0.2, 1.0, 5.0):
        maps = [level.requires_grad_() for level in raw_for(scene, (shift, 0))]
        loss = losses_of(scene._replace(outputs=scene.outputs._replace(keypoint=KeypointOutputs(maps))))[
            "keypoint.location"
        ]
        pull = math.sqrt(sum(gradient.square().sum().item() for gradient in torch.autograd.grad(loss, maps)))
        found.append((loss.item(), pull))
    assert [loss for loss, _ in found] == sorted(loss for loss, _ in found)
    assert min(pull for _, pull in found[1:]) > 0.1  # 1 - OKS would leave 1e-11 at the last


def test_the_box_learns_nothing_from_its_points(scene: Scene) -> None:
    sum(losses_of(scene).values()).backward()
    assert all(level.grad is None for level in scene.outputs.detect)
    assert all(level.grad is not None for level in scene.outputs.keypoint.points)


def test_points_of_a_fresh_branch_lie_close_to_their_boxes_centre() -> None:
    torch.manual_seed(0)
    maps = KeypointBranch((Level(8, 64),), 3, 17)({8: torch.randn(4, 64, 10, 10)}).points
    offsets = maps[0].unflatten(-1, (-1, 3))[..., :2]  # in boxes
    assert 0 < offsets.abs().mean() < 0.1


def test_points_that_are_never_or_always_labelled_start_neither_lost_nor_certain() -> None:
    branch = KeypointBranch((Level(8, 16),), 1, 2, heatmaps=False)
    branch.start_at(torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    assert branch.layers[0].bias.view(2, 3)[:, 2].sigmoid().tolist() == pytest.approx([0.01, 0.99])


def test_the_order_of_levels_in_a_pyramid_does_not_matter() -> None:
    branch = KeypointBranch((Level(8, 16), Level(16, 24)), 1, 2).eval()
    fused = {8: torch.rand(1, 16, 8, 8), 16: torch.rand(1, 24, 4, 4)}
    for one, other in zip(branch(fused), branch({16: fused[16], 8: fused[8]}), strict=True):
        torch.testing.assert_close(one, other)
