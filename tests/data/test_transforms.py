"""One geometry for pixels, boxes, masks and keypoints."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtyolo.config.training import AugmentConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.formats.masks import polygons_to_rle
from mtyolo.data.mosaic import View, draw_view, place_four
from mtyolo.data.records import ImageRecord, Instance, Problems, Split, labels_of
from mtyolo.data.transforms import Placement, clip_boxes, jitter_colour, mirror, paste, still_seen

ALL_TASKS = ("detect", "segment", "keypoint")
DOTS = [(60, 50), (150, 120), (225, 60)]
RED = (255, 0, 0)
RADIUS = 6
NO_COLOUR = {"hue": 0.0, "saturation": 0.0, "value": 0.0}


@pytest.fixture
def dotted(tmp_path: Path) -> Split:
    """Four images of 300 x 200 with three red dots, each a keypoint of the one box and mask around all of them."""
    pixels = np.full((200, 300, 3), 40, np.uint8)
    rows, columns = np.mgrid[:200, :300]
    for x, y in DOTS:
        pixels[(columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= RADIUS**2] = RED
    box = (40.0, 30.0, 240.0, 150.0)
    mask = polygons_to_rle([[40, 30, 240, 30, 240, 150, 40, 150]], 200, 300)
    keypoints = np.array([(x, y, 2) for x, y in DOTS], np.float32)
    labels = labels_of([Instance(0, box, mask, keypoints)], ALL_TASKS, masks=True, points=3)
    records = []
    for number in range(4):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        records.append(ImageRecord(tmp_path / f"{number}.png", 200, 300, labels))
    return Split("train", records, {0: "thing"}, Problems(), points=3, flip_idx=[2, 1, 0], sigmas=[0.1] * 3)


def redness(image: np.ndarray) -> np.ndarray:
    return image[..., 0].astype(float) - image[..., 1]


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_letterbox_gives_the_pixels_of_the_reference(test_data: Path, name: str) -> None:
    reference = np.load(test_data / "reference" / "yolov5n_forward_reference.npz")
    height, width = (int(value) for value in reference[f"{name}_original_hw"])
    empty = labels_of([], ["detect"], masks=False, points=None)
    record = ImageRecord(test_data / "images" / f"{name}.jpg", height, width, empty)
    sample = Dataset(Split("val", [record], {0: "a"}, Problems()), 640)[0]
    difference = np.abs(sample.image.astype(int) - reference[f"{name}_input"].transpose(1, 2, 0))
    # Two builds of libjpeg may differ in the last digit.
    assert difference.max() <= 3
    assert difference.mean() < 0.01
    assert (sample.letterbox.left, sample.letterbox.top) == tuple(reference[f"{name}_letterbox_pad"].astype(int))


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_keypoints_stay_on_their_pixels(dotted: Split, mosaic: float) -> None:
    dataset = Dataset(dotted, 256, AugmentConfig(mosaic=mosaic, **NO_COLOUR), seed=3)
    seen = 0
    for epoch in range(15):
        sample = dataset[(epoch, epoch % 4)]
        assert sample.keypoints is not None
        for x, y, v in sample.keypoints.reshape(-1, 3):
            if v == 0 or not (2 < x < 254 and 2 < y < 254):
                continue
            assert redness(sample.image)[int(y), int(x)] > 150
            seen += 1
    assert seen > 20


def test_a_dot_is_centred_on_its_keypoint_within_half_a_pixel(dotted: Split) -> None:
    dataset = Dataset(dotted, 256, AugmentConfig(mosaic=0.0, scale=0.3, translate=0.05, **NO_COLOUR))
    for epoch in range(12):
        sample = dataset[(epoch, 0)]
        assert sample.keypoints is not None
        for x, y, v in sample.keypoints[0] if len(sample.keypoints) else ():
            reach = 12
            if v == 0 or not (reach < x < 256 - reach and reach < y < 256 - reach):
                continue
            top, left = int(y) - reach, int(x) - reach
            weight = redness(sample.image)[top : top + 2 * reach, left : left + 2 * reach].clip(0)
            rows, columns = np.mgrid[top : top + 2 * reach, left : left + 2 * reach] + 0.5
            centre = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
            assert centre == pytest.approx((x, y), abs=0.5)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_the_box_of_a_mask_is_the_box(dotted: Split, mosaic: float) -> None:
    dataset = Dataset(dotted, 256, AugmentConfig(mosaic=mosaic, **NO_COLOUR))
    checked = 0
    for epoch in range(10):
        sample = dataset[(epoch, 1)]
        assert sample.masks is not None
        assert sample.masks.shape[1:] == (64, 64)
        for mask, box in zip(sample.masks, sample.boxes_xyxy, strict=True):
            rows, columns = np.nonzero(mask)
            of_mask = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 4.0
            np.testing.assert_allclose(of_mask, box, atol=4)
            checked += 1
    assert checked >= 8


def test_left_becomes_right_and_twice_is_nothing(dotted: Split) -> None:
    sample = Dataset(dotted, 256)[0]
    once = mirror(sample, dotted.flip_idx)
    assert sample.keypoints is not None
    assert once.keypoints is not None
    np.testing.assert_allclose(once.keypoints[0, 0, 0], 256 - sample.keypoints[0, 2, 0])
    twice = mirror(once, dotted.flip_idx)
    for name in ("image", "boxes_xyxy", "masks", "keypoints"):
        np.testing.assert_allclose(getattr(twice, name), getattr(sample, name), atol=1e-4)


def test_without_flip_idx_keypoints_are_never_mirrored(dotted: Split) -> None:
    dotted.flip_idx = None
    dataset = Dataset(dotted, 128, AugmentConfig(mosaic=0, flip=1.0, scale=0, translate=0, **NO_COLOUR))
    plain = Dataset(dotted, 128)
    np.testing.assert_allclose(dataset[0].boxes_xyxy, plain[0].boxes_xyxy, atol=1e-4)


def test_all_augmentations_zero_is_the_letterbox(dotted: Split) -> None:
    none = AugmentConfig(mosaic=0, flip=0, scale=0, translate=0, hue=0, saturation=0, value=0)
    augmented, plain = Dataset(dotted, 192, none)[2], Dataset(dotted, 192)[2]
    for name in ("image", "boxes_xyxy", "masks", "keypoints"):
        np.testing.assert_array_equal(getattr(augmented, name), getattr(plain, name))


def test_points_that_leave_the_window_lose_their_visibility() -> None:
    keypoints = np.array([[[10, 10, 2], [90, 10, 1], [50, 50, 0]]], np.float32)
    moved = Placement(1.0, 20.0, 0.0, (0, 0, 100, 100)).points(keypoints, ratio=1.0)
    np.testing.assert_array_equal(moved[0], [[30, 10, 2], [0, 0, 0], [0, 0, 0]])


def test_boxes_are_kept_by_size_and_share_as_counted_by_hand() -> None:
    whole = np.array([[0, 0, 50, 50], [-95, 0, 5, 100], [-80, 0, 20, 100], [10, 10, 11.5, 90]], np.float32)
    clipped = clip_boxes(whole, (0, 0, 100, 100))
    assert clipped.tolist()[1:3] == [[0, 0, 5, 100], [0, 0, 20, 100]]
    # whole in view; a twentieth left; a fifth left; 1.5 pixels wide
    assert still_seen(whole, clipped).tolist() == [True, False, True, False]
    assert still_seen(whole[:0], clipped[:0]).tolist() == []
    thin = np.array([[0, 0, 2.5, 240], [0, 0, 2.5, 260]], np.float32)  # 96 and 104 times as tall as wide
    assert still_seen(thin, thin).tolist() == [True, False]


def test_pixels_of_a_magnified_image_lie_between_those_of_the_image() -> None:
    """To a fraction of a pixel, and without a dark rim."""
    image = np.repeat(np.arange(20, 180, 40, dtype=np.uint8)[None, :, None], 3, 2).repeat(4, 0)
    canvas = np.zeros((8, 8, 3), np.uint8)
    paste(image, Placement(2.0, 0.0, 0.0, (0, 0, 8, 8)), canvas)
    assert canvas[:, :, 0].tolist() == [[20, 30, 50, 70, 90, 110, 130, 140]] * 8


def test_four_images_meet_in_the_middle_and_show_no_more_than_the_drawing() -> None:
    random = np.random.default_rng(0)
    meetings = []
    for _ in range(200):
        placed = place_four([(100, 100)] * 4, 100, View(0.25, 0.0, 0.0), random)
        windows = np.array([placement.window for placement in placed])
        assert windows.min() >= 0
        assert windows.max() <= 50, "a quarter of a drawing of 200"
        x, y = windows[0, 2:]
        assert windows[1:].tolist() == pytest.approx(
            np.array(
                [[x, windows[1, 1], windows[1, 2], y], [windows[2, 0], y, x, windows[2, 3]], [x, y, *windows[3, 2:]]]
            )
        )
        meetings.append((x, y))
    low, high = np.min(meetings, 0), np.max(meetings, 0)
    assert ((low >= 12.5) & (low < 14) & (high > 36) & (high <= 37.5)).all()


def test_a_view_scales_and_shifts_both_ways() -> None:
    random, augment = np.random.default_rng(0), AugmentConfig(scale=0.5, translate=0.1)
    views = [draw_view(100, 80.0, augment, random) for _ in range(300)]
    middles = [(view.left + 80 * view.gain, view.top + 80 * view.gain) for view in views]
    for values, least, most in (([view.gain for view in views], 0.5, 1.5), (np.array(middles), 40, 60)):
        span = most - least
        assert least <= np.min(values) < least + span / 20
        assert most - span / 20 < np.max(values) <= most


def test_value_jitter_scales_brightness_and_leaves_hue(dotted: Split) -> None:
    image = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    random = np.random.default_rng(0)
    draws = [jitter_colour(image, AugmentConfig(hue=0, saturation=0, value=0.4), random)[0, 0] for _ in range(30)]
    brightest = np.array([draw.max() for draw in draws])
    assert 115 <= brightest.min() < 160
    assert 230 < brightest.max() <= 255
    for draw in draws:
        assert draw[1] / draw[0] == pytest.approx(0.5, abs=0.03)


def test_hue_and_saturation_turn_both_ways_as_far_as_they_may() -> None:
    image, random = np.full((8, 8, 3), (200, 100, 100), np.uint8), np.random.default_rng(0)

    def drawn(place: int, **jitter: float) -> np.ndarray:
        """What 200 draws make of the hue (-0.5 to 0.5) or the saturation."""
        augment = AugmentConfig(**NO_COLOUR | jitter)
        colours = [jitter_colour(image, augment, random)[0, 0] / 255 for _ in range(200)]
        found = np.array([colorsys.rgb_to_hsv(*colour)[place] for colour in colours])
        return (found + 0.5) % 1 - 0.5 if place == 0 else found

    turned, faded = drawn(0, hue=0.1), drawn(1, saturation=0.4)
    assert turned.min() == pytest.approx(-0.1, abs=0.015)
    assert turned.max() == pytest.approx(0.1, abs=0.015)
    assert faded.min() == pytest.approx(0.3, abs=0.02)
    assert faded.max() == pytest.approx(0.7, abs=0.02)
