"""From raw outputs to detections: masks and keypoints are those of the selected rows."""

from __future__ import annotations

import pytest
import torch
from scene import HEIGHT, POINTS, WIDTH, Scene

from mtyolo.config.model import KeypointConfig
from mtyolo.errors import DataError
from mtyolo.structures import KeypointOutputs, Letterbox
from mtyolo.tasks.instances import instances

SIZE = (HEIGHT, WIDTH)


def planted(scene: Scene) -> Scene:
    """One confident object: image 2, second level, first anchor, row 3, column 5; everything else background."""
    for level in scene.outputs.detect:
        level.data[..., 4] = -20
    scene.outputs.detect[1].data[2, 0, 3, 5] = torch.tensor([0.0, 0, 0, 0, 20, -20, -20, 20, -20, -20])
    keypoints = torch.tensor([[0.5, 0.5, 9], [0, 0, -9], [-0.5, 0, 9]])
    scene.outputs.keypoint.points[1].data[2, 0, 3, 5] = keypoints.flatten()
    scene.outputs.segment.coefficients[1].data[2, 0, 3, 5] = torch.tensor([10.0] + [0] * 7)
    scene.outputs.segment.prototypes.data[2, 0] = -1
    scene.outputs.segment.prototypes.data[2, 0, :, 22:] = 1  # right of x = 88 pixels
    return scene._replace(outputs=scene.outputs._replace(keypoint=KeypointOutputs(scene.outputs.keypoint.points)))


def test_an_object_is_found_where_it_was_planted(scene: Scene) -> None:
    scene = planted(scene)
    with torch.no_grad():
        found = instances(scene.outputs, scene.decoded, size=SIZE)
    assert [len(image) for image in found] == [0, 0, 1, 0]
    assert found[0].masks.shape == (0, *SIZE)
    assert found[0].keypoints.shape == (0, POINTS, 3)
    # Raw zero: the cell's centre (88, 56), the anchor's size 30 x 61.
    assert found[2].boxes_xyxy[0].tolist() == pytest.approx([73, 25.5, 103, 86.5])
    assert found[2].classes.tolist() == [2]
    assert found[2].scores.item() == pytest.approx(1)
    assert found[2].keypoints[0, :, :2].flatten().tolist() == pytest.approx([103, 86.5, 88, 56, 73, 56])
    assert found[2].keypoints[0, :, 2].round().tolist() == [1, 0, 1]
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[25:86, 88:103] = True
    assert torch.equal(found[2].masks[0], expected)


def test_with_letterboxes_all_is_in_original_pixels(scene: Scene) -> None:
    scene = planted(scene)
    letterbox = Letterbox(ratio=0.5, left=4, top=10, height=152, width=240)
    with torch.no_grad():
        found = instances(scene.outputs, scene.decoded, size=SIZE, letterboxes=[letterbox] * 4)[2]
    assert found.size == (152, 240)
    assert found.boxes_xyxy[0].tolist() == pytest.approx([138, 31, 198, 152])  # the bottom, at 153, is clipped
    assert found.keypoints[0, :, :2].flatten().tolist() == pytest.approx([198, 153, 168, 92, 138, 92])
    expected = torch.zeros(152, 240, dtype=torch.bool)
    expected[31:152, 168:198] = True
    assert torch.equal(found.masks[0], expected)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_letterboxes_of_other_images_than_the_batchs_are_refused(count: int, scene: Scene) -> None:
    letterboxes = [Letterbox(ratio=0.5, left=4, top=10, height=152, width=240)] * count
    with pytest.raises(DataError, match=rf"^letterboxes: expected one for each image of the batch, 4, got {count};"):
        instances(scene.outputs, scene.decoded, size=SIZE, letterboxes=letterboxes)


def test_points_move_to_the_peaks_of_their_images_heatmaps(scene: Scene) -> None:
    scene = planted(scene)
    maps = torch.zeros(4, POINTS, HEIGHT, WIDTH)
    for point, (x, y) in enumerate([(96, 80), (88, 56), (80, 40)]):
        maps[2, point, y - 2 : y + 2, x - 2 : x + 2] = 30
        maps[1, point, 5:9, 5:9] = 90  # another image's
    keypoint = scene.outputs.keypoint._replace(heatmaps=maps)
    letterbox = Letterbox(ratio=0.5, left=4, top=10, height=152, width=240)
    with torch.no_grad():
        found = instances(
            scene.outputs._replace(keypoint=keypoint),
            scene.decoded,
            size=SIZE,
            letterboxes=[letterbox] * 4,
        )[2]
    expected = [(x - 4) * 2 for x in (96, 88, 80)], [(y - 10) * 2 for y in (80, 56, 40)]
    for axis in range(2):
        assert found.keypoints[0, :, axis].tolist() == pytest.approx(expected[axis], abs=3)
    assert found.keypoints[0, :, 2].round().tolist() == [1, 0, 1]


def test_how_exactly_points_are_placed_decides_how_far_heatmaps_move_them(scene: Scene) -> None:
    heatmaps, scene = scene.outputs.keypoint.heatmaps, planted(scene)
    outputs = scene.outputs._replace(keypoint=scene.outputs.keypoint._replace(heatmaps=heatmaps))

    def points(sigmas: list[float] | None) -> torch.Tensor:
        keypoint = KeypointConfig(sigmas=sigmas)
        with torch.no_grad():
            found = instances(outputs, scene.decoded, size=SIZE, keypoint=keypoint)
        return found[2].keypoints

    assert torch.equal(points(None), points([1 / POINTS] * POINTS))
    assert not torch.allclose(points(None), points([0.02] * POINTS), atol=1)


@pytest.mark.parametrize(("classes", "visible"), [(None, [1, 0, 1]), ([2, 4], [1, 0, 1]), ([0, 1], [0, 0, 0])])
def test_points_of_classes_that_have_none_are_not_visible(
    scene: Scene, classes: list[int] | None, visible: list[int]
) -> None:
    scene = planted(scene)  # of class 2
    with torch.no_grad():
        found = instances(scene.outputs, scene.decoded, size=SIZE, keypoint=KeypointConfig(classes=classes))[2]
    assert found.keypoints[0, :, 2].round().tolist() == visible


def test_a_detector_alone_gives_boxes_alone(scene: Scene) -> None:
    outputs = planted(scene).outputs._replace(segment=None, keypoint=None)
    found = instances(outputs, scene.decoded, size=SIZE)[2]
    assert found.masks is None
    assert found.keypoints is None
    assert len(found) == 1
