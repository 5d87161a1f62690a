from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtyolo.drawing import COCO_SKELETON, draw_batch, draw_comparison, draw_detections, save_image, truths_of
from mtyolo.errors import ConfigError, DataError
from mtyolo.structures import Batch, Detections, Targets

NAMES = {0: "disc", 1: "square"}
GREY = 90


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def detections(box: tuple[float, float, float, float], class_number: int = 0, **extras: torch.Tensor) -> Detections:
    return Detections(
        torch.tensor([box], dtype=torch.float32), torch.tensor([0.9]), torch.tensor([class_number]), **extras
    )


def none_found() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def touched(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(2)


def batch_of(images: torch.Tensor | None) -> Batch:
    mask = torch.zeros(1, 80, 80, dtype=torch.uint8)
    mask[0, 20:40, 20:60] = 1
    points = torch.tensor([[[0.3, 0.3, 2.0], [0.7, 0.4, 0.0]]])
    box = torch.tensor([[0.5, 0.375, 0.5, 0.25]])
    targets = Targets(torch.tensor([1]), torch.tensor([1]), box, mask, points)
    pyramid = {8: torch.zeros(2, 4, 40, 40)} if images is None else None
    return Batch(targets, torch.arange(2), [], images, pyramid)


def test_the_box_lies_where_the_detection_says():
    picture = draw_detections(grey(700, 800), detections((300, 400, 500, 600)), NAMES)
    changed = touched(picture)
    for row, column in ((500, 300), (500, 500), (400, 450), (600, 400)):
        assert changed[row, column]
    assert not changed[410:590, 310:490].any(), "inside the box"
    assert not changed[:, :280].any()
    assert not changed[620:].any()


EDGES = [(300, 0, 500, 200), (300, 8, 500, 200), (780, 300, 799, 500), (780, 0, 799, 200), (-20, -20, 60, 60)]


@pytest.mark.parametrize("box", EDGES, ids=str)
def test_a_text_at_an_edge_of_the_picture_is_whole(box: tuple[float, float, float, float]):
    def letters(drawn: np.ndarray) -> int:
        """Pixels of them: black or white, as neither the picture nor the boxes are."""
        return int(((drawn == 0) | (drawn == 255)).all(2).sum())

    middle, at_edge = (draw_detections(grey(700, 800), detections(at), NAMES) for at in ((300, 300, 500, 500), box))
    assert letters(at_edge) == letters(middle) > 20


def test_classes_have_different_colours():
    box = (300, 400, 500, 600)
    first, second = (draw_detections(grey(700, 800), detections(box, number), NAMES)[600, 400] for number in (0, 1))
    assert (first != second).any()


def test_the_mask_tints_its_pixels_and_no_others():
    masks = torch.zeros(1, 700, 800, dtype=torch.bool)
    masks[0, 450:550, 350:450] = True
    changed = touched(draw_detections(grey(700, 800), detections((300, 400, 500, 600), masks=masks), NAMES))
    inside = changed[410:590, 310:490]
    assert inside[40:140, 40:140].all()
    assert inside.sum() == 100 * 100


def test_points_that_are_not_visible_are_not_drawn():
    keypoints = torch.tensor([[[400.0, 500.0, 0.9], [350.0, 450.0, 0.1]]])
    changed = touched(draw_detections(grey(700, 800), detections((300, 400, 500, 600), keypoints=keypoints), NAMES))
    assert changed[500, 400]
    assert not changed[440:460, 340:360].any()


def test_seventeen_points_are_joined_as_a_body():
    points = torch.zeros(1, 17, 3)
    points[0, 5], points[0, 7] = torch.tensor([320.0, 420.0, 1.0]), torch.tensor([480.0, 580.0, 1.0])
    assert (5, 7) in COCO_SKELETON
    changed = touched(draw_detections(grey(700, 800), detections((300, 400, 500, 600), keypoints=points), NAMES))
    assert changed[500, 400], "the middle of the upper arm"


@pytest.mark.parametrize(("skeleton", "joined"), [([(0, 1)], True), ([(0, 2)], False), ([], False), (None, False)])
def test_points_are_joined_as_the_data_says(skeleton, joined):
    points = torch.tensor([[[320.0, 420.0, 1.0], [480.0, 580.0, 1.0], [320.0, 580.0, 1.0]]])
    found = detections((300, 400, 500, 600), keypoints=points)
    assert touched(draw_detections(grey(700, 800), found, NAMES, skeleton))[500, 400] == joined
    sheet = draw_comparison([grey(700, 800)], [found], [found], NAMES, skeleton)
    without = draw_comparison([grey(700, 800)], [found], [found], NAMES, [])
    assert (sheet != without).any() == bool(skeleton)


def test_a_skeleton_without_lines_joins_no_body():
    points = torch.zeros(1, 17, 3)
    points[0, 5], points[0, 7] = torch.tensor([320.0, 420.0, 1.0]), torch.tensor([480.0, 580.0, 1.0])
    found = detections((300, 400, 500, 600), keypoints=points)
    assert not touched(draw_detections(grey(700, 800), found, NAMES, []))[500, 400]


def test_small_images_are_enlarged_with_what_is_drawn_on_them():
    picture = draw_detections(grey(100, 200), detections((50, 50, 150, 90)), NAMES)
    assert picture.shape == (320, 640, 3)
    changed = touched(picture)
    assert changed[int(70 * 3.2), int(50 * 3.2)]
    assert changed[int(70 * 3.2), int(150 * 3.2)]


def test_the_given_image_is_left_as_it_was():
    image = grey(700, 800)
    draw_detections(image, detections((300, 400, 500, 600)), NAMES)
    assert not touched(image).any()


def test_an_image_without_detections_is_drawn_unchanged():
    empty = none_found()
    empty.masks, empty.keypoints = torch.zeros(0, 700, 800, dtype=torch.bool), torch.zeros(0, 17, 3)
    assert not touched(draw_detections(grey(700, 800), empty, NAMES)).any()


def test_unknown_class_numbers_are_drawn_by_number():
    draw_detections(grey(700, 800), detections((300, 400, 500, 600), class_number=7), NAMES)


def test_the_truth_of_a_batch_is_in_pixels_of_its_own_image():
    first, second = truths_of(batch_of(torch.zeros(2, 3, 320, 320, dtype=torch.uint8)))
    assert len(first) == 0
    assert second.boxes_xyxy.tolist() == [[80, 80, 240, 160]]
    assert second.masks is not None
    assert second.keypoints is not None
    rows, columns = torch.nonzero(second.masks[0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 159, 80, 239)
    torch.testing.assert_close(second.keypoints[0, 0], torch.tensor([96.0, 96.0, 1.0]))


def test_a_batch_becomes_a_grid_with_a_tile_for_each_image():
    picture = draw_batch(batch_of(torch.full((2, 3, 320, 320), GREY, dtype=torch.uint8)), NAMES)
    height, width, _ = picture.shape
    assert width > 1.9 * height
    left, right = picture[10:-10, 10 : width // 2 - 10], picture[10:-10, width // 2 + 10 : -10]
    assert not touched(left).any()
    assert touched(right).any()


def test_a_batch_of_features_has_no_picture():
    with pytest.raises(DataError, match="no pictures"):
        draw_batch(batch_of(None), NAMES)


def test_a_comparison_has_truth_left_and_prediction_right():
    found = detections((150, 150, 450, 330))
    picture = draw_comparison([grey(480, 480)], [none_found()], [found], NAMES)
    middle = slice(120, 360)
    half = picture.shape[1] // 2
    assert not touched(picture[middle, 10 : half - 10]).any()
    assert touched(picture[middle, half + 10 : -10]).any()


def test_saving_leaves_the_picture_and_nothing_else(tmp_path: Path):
    path = save_image(grey(20, 30), tmp_path / "new" / "picture.png")
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
    with Image.open(path) as written:
        assert (np.asarray(written) == GREY).all()


@pytest.mark.parametrize("suffix", [".xyz", ".mpg", ""])
def test_a_suffix_that_is_not_written_is_refused_before_anything_is_written(suffix: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"not written with this suffix; known: \.jpg \.png"):
        save_image(grey(20, 30), tmp_path / f"picture{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "width", "kind"), [("a.jpg", 70000, "JPEG"), ("a.webp", 20000, "WEBP"), ("a.h5", 9, "HDF5")]
)
def test_a_picture_that_its_format_does_not_take_is_no_matter_of_room(name: str, width: int, kind: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"{width}x1 pixels can not be written as {kind} \(.*; give it another suffix"):
        save_image(grey(1, width), tmp_path / name)
    assert not list(tmp_path.iterdir())
