"""Average precision against closed forms of small cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle_codec

from mtyolo.data.records import ImageRecord, Labels
from mtyolo.errors import DataError
from mtyolo.evaluation.keypoints import KeypointPrecision
from mtyolo.evaluation.masks import MaskPrecision, run_lengths
from mtyolo.evaluation.precision import BoxPrecision
from mtyolo.geometry import AREA_OF_BOX
from mtyolo.structures import Detections

NAMES = {0: "cat", 1: "dog"}
SIZE = (200, 300)
BOX = (50.0, 50.0, 150.0, 150.0)
SHIFT = 24
"""Pixels that a box of 100 moves for an IoU of 76 / 124 = 0.613: right at 0.50, 0.55 and 0.60 only."""
SIGMAS = (0.05, 0.1)

Box = tuple[float, float, float, float]


def shifted(box: Box, by: float = SHIFT) -> Box:
    return (box[0] + by, box[1], box[2] + by, box[3])


def filled(box: Box) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    left, top, right, bottom = (int(side) for side in box)
    mask[top:bottom, left:right] = 1
    return mask


def record(
    *boxes: Box, classes: list[int] | None = None, crowd: list[bool] | None = None, **labels: Any
) -> ImageRecord:
    count = len(boxes)
    found = Labels(
        classes=np.array(classes or [0] * count, np.int64),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        crowd=np.array(crowd or [False] * count, np.bool_),
        **labels,
    )
    return ImageRecord(Path("photo.jpg"), *SIZE, found)


def masked_record(*boxes: Box, has_mask: list[bool] | None = None, **labels: Any) -> ImageRecord:
    segments = [rle_codec.encode(np.asfortranarray(filled(box))) for box in boxes]
    if has_mask is not None:
        segments = [segment if has else None for segment, has in zip(segments, has_mask, strict=True)]
    return record(*boxes, segments=segments, **labels)


def found(
    *boxes: Box, scores: list[float] | None = None, classes: list[int] | None = None, **extras: Any
) -> Detections:
    """Best first, as the model gives them."""
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores or [0.9] * len(boxes), dtype=torch.float32),
        torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
        size=SIZE,
        **extras,
    )


def masked(*boxes: Box, **values: Any) -> Detections:
    masks = torch.from_numpy(np.array([filled(box) for box in boxes], np.bool_).reshape(-1, *SIZE))
    return found(*boxes, masks=masks, **values)


def test_finding_every_box_is_one():
    judge = BoxPrecision(NAMES)
    judge.add(found(BOX, shifted(BOX, 120), classes=[0, 1]), record(BOX, shifted(BOX, 120), classes=[0, 1]))
    metrics = judge.compute()
    assert (metrics.ap, metrics.ap50, metrics.ap75) == (1, 1, 1)
    assert (metrics.images, metrics.objects) == (1, 2)
    assert metrics.per_class == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(("by", "ap", "ap75"), [(SHIFT, 0.3, 0), (16, 0.5, 0), (12, 0.6, 1)])
def test_a_shifted_box_counts_up_to_its_overlap(by: int, ap: float, ap75: float):
    judge = BoxPrecision(NAMES)
    judge.add(found(shifted(BOX, by)), record(BOX))
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(ap)
    assert (metrics.ap50, metrics.ap75) == (1, ap75)


def test_half_of_the_objects_found_is_fifty_one_of_the_recall_points():
    judge = BoxPrecision(NAMES)
    judge.add(found(BOX), record(BOX, shifted(BOX, 120)))
    assert judge.compute().ap == pytest.approx(51 / 101)


def test_a_better_scored_false_alarm_halves_the_precision():
    judge = BoxPrecision(NAMES)
    judge.add(found((0, 0, 20, 20), BOX, scores=[0.9, 0.5]), record(BOX))
    assert judge.compute().ap == pytest.approx(0.5)


def test_a_false_alarm_on_an_image_without_objects_counts():
    judge = BoxPrecision(NAMES)
    judge.add(found(BOX, scores=[0.5]), record(BOX))
    judge.add(found(BOX, scores=[0.9]), record())
    assert judge.compute().ap == pytest.approx(0.5)


def test_classes_are_averaged_and_absent_ones_left_out():
    judge = BoxPrecision(NAMES)
    judge.add(found(BOX, classes=[0]), record(BOX, shifted(BOX, 120), classes=[0, 1]))
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(0.5)
    assert metrics.per_class == {"cat": 1, "dog": 0}
    judge = BoxPrecision(NAMES)
    judge.add(found(BOX, BOX, classes=[0, 1], scores=[0.9, 0.9]), record(BOX))
    assert judge.compute().per_class == {"cat": 1}


def test_detections_in_a_crowd_region_are_no_false_alarms():
    crowd = (160.0, 0.0, 300.0, 200.0)
    inside = [(170.0, 10.0, 200.0, 40.0), (220.0, 60.0, 260.0, 120.0)]
    for ignored, expected in ((True, 1.0), (False, 0.0)):
        judge = BoxPrecision(NAMES)
        judge.add(found(*inside, BOX, scores=[0.9, 0.8, 0.1]), record(BOX, crowd, crowd=[False, ignored]))
        metrics = judge.compute()
        assert metrics.objects == (1 if ignored else 2)
        assert (metrics.ap == pytest.approx(1)) == (expected == 1)


def test_more_than_a_hundred_detections_of_a_class_are_cut_by_score():
    judge = BoxPrecision(NAMES)
    elsewhere = [(0.0, 0.0, 20.0, 20.0)] * 100
    judge.add(found(*elsewhere, BOX, scores=[0.9] * 100 + [0.5]), record(BOX))
    assert judge.compute().ap == 0


def test_with_nothing_to_find_the_average_is_unknown():
    for judge, detections, label in (
        (BoxPrecision(NAMES), found(BOX), record()),
        (MaskPrecision(NAMES), masked(BOX), masked_record()),
        (KeypointPrecision(NAMES, SIGMAS), found(BOX, keypoints=torch.ones(1, 2, 3)), record()),
    ):
        assert math.isnan(judge.compute().ap), "no image was labelled"
        judge.add(detections, label)
        metrics = judge.compute()
        assert math.isnan(metrics.ap)
        assert (metrics.images, metrics.objects) == (1, 0)


def test_finding_nothing_at_all_is_zero():
    judge = BoxPrecision(NAMES)
    judge.add(found(), record(BOX))
    assert judge.compute().ap == 0
    judge = MaskPrecision(NAMES)
    judge.add(masked(), masked_record(BOX))
    assert judge.compute().ap == 0
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(found(keypoints=torch.zeros(0, 2, 3)), record(BOX, keypoints=np.ones((1, 2, 3), np.float32)))
    assert judge.compute().ap == 0


def test_masks_are_judged_by_their_own_overlap_and_not_by_the_box():
    judge = MaskPrecision(NAMES)
    detections = masked(shifted(BOX))
    detections.boxes_xyxy = torch.tensor([BOX])
    judge.add(detections, masked_record(BOX))
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(0.3)
    assert (metrics.ap50, metrics.ap75) == (1, 0)


def test_a_false_mask_on_an_image_without_objects_counts():
    judge = MaskPrecision(NAMES)
    judge.add(masked(BOX, scores=[0.5]), masked_record(BOX))
    judge.add(masked(BOX, scores=[0.9]), masked_record())
    assert judge.compute().ap == pytest.approx(0.5)


def test_an_object_without_a_mask_is_neither_found_nor_missed():
    other = shifted(BOX, 120)
    judge = MaskPrecision(NAMES)
    judge.add(masked(other, BOX, scores=[0.9, 0.5]), masked_record(BOX, other, has_mask=[True, False]))
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(1)
    assert metrics.objects == 1


def test_masks_in_a_crowd_region_are_no_false_alarms():
    other = shifted(BOX, 120)
    judge = MaskPrecision(NAMES)
    judge.add(masked(other, BOX, scores=[0.9, 0.5]), masked_record(BOX, other, crowd=[False, True]))
    metrics = judge.compute()
    assert (metrics.ap, metrics.objects) == (pytest.approx(1), 1)


def test_an_object_with_an_empty_mask_is_its_box_to_ignore():
    other, truth = shifted(BOX, 120), masked_record(BOX, BOX)
    truth.labels.boxes_xyxy[1] = other
    truth.labels.segments[1] = rle_codec.encode(np.asfortranarray(np.zeros(SIZE, np.uint8)))
    judge = MaskPrecision(NAMES)
    judge.add(masked(other, BOX, scores=[0.9, 0.5]), truth)
    metrics = judge.compute()
    assert (metrics.ap, metrics.objects) == (pytest.approx(1), 1)


def test_of_masks_an_images_best_hundred_count_whatever_their_classes():
    judge = MaskPrecision(NAMES)
    elsewhere = [(0.0, 0.0, 20.0, 20.0)] * 100
    detections = masked(*elsewhere, BOX, scores=[0.9] * 100 + [0.5], classes=[0] * 100 + [1])
    judge.add(detections, masked_record(BOX, classes=[1]))
    assert judge.compute().ap == 0


@pytest.mark.parametrize("fill", ["empty", "full", "noise", "one corner", "other corner"])
def test_run_lengths_are_those_of_cocos_own_encoder(fill: str):
    mask = np.zeros((37, 53), np.bool_)
    if fill == "full":
        mask[:] = True
    elif fill == "noise":
        mask[5:30, 10:40] = np.random.default_rng(0).random((25, 30)) > 0.5
    elif fill == "one corner":
        mask[0, 0] = True
    elif fill == "other corner":
        mask[-1, -1] = True
    expected = rle_codec.encode(np.asfortranarray(mask))
    assert run_lengths(mask) == expected


def test_a_mask_of_another_size_than_the_image_is_named():
    wrong = masked_record(BOX)
    wrong.height = 250
    with pytest.raises(DataError, match=r"photo\.jpg: a mask is 300x200 pixels, the image 300x250"):
        MaskPrecision(NAMES).add(masked(BOX), wrong)


def points_at(*places: tuple[float, float], visibility: float = 2) -> np.ndarray:
    return np.array([[[x, y, visibility] for x, y in places]], np.float32)


def off_by(similarity: float, area: float, sigma: float) -> float:
    """Distance in pixels at which one point has this similarity: OKS = exp(-d^2 / (2 area (2 sigma)^2))."""
    return math.sqrt(-math.log(similarity) * 2 * area * (2 * sigma) ** 2)


@pytest.mark.parametrize("with_mask", [True, False])
def test_points_count_up_to_their_similarity(with_mask: bool):
    area = 100 * 100 * (1 if with_mask else AREA_OF_BOX)
    truth = points_at((80, 80), (120, 120))
    moved = truth.copy()
    for point, sigma in enumerate(SIGMAS):
        moved[0, point, 0] += off_by(0.82, area, sigma)
    judge = KeypointPrecision(NAMES, SIGMAS)
    make = masked_record if with_mask else record
    judge.add(found(BOX, keypoints=torch.from_numpy(moved)), make(BOX, keypoints=truth))
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(0.7)  # 0.50, 0.55 … 0.80
    assert (metrics.ap50, metrics.ap75) == (1, 1)
    assert (metrics.images, metrics.objects) == (1, 1)
    assert metrics.similarity == pytest.approx(0.82, abs=1e-4)


def test_the_area_in_the_json_goes_before_that_of_the_mask():
    truth, moved = points_at((80, 80), (120, 120)), points_at((80, 80), (120, 120))
    for point, sigma in enumerate(SIGMAS):
        moved[0, point, 0] += off_by(0.82, 5000, sigma)
    judge = KeypointPrecision(NAMES, SIGMAS)
    areas = np.array([5000], np.float32)
    judge.add(found(BOX, keypoints=torch.from_numpy(moved)), masked_record(BOX, keypoints=truth, areas=areas))
    assert judge.compute().similarity == pytest.approx(0.82, abs=1e-4)


def test_points_of_a_crowd_are_neither_found_nor_missed():
    truth = np.concatenate([points_at((80, 80), (120, 120)), points_at((200, 80), (240, 120))])
    judge = KeypointPrecision(NAMES, SIGMAS)
    crowded = record(BOX, shifted(BOX, 120), crowd=[False, True], keypoints=truth)
    judge.add(found(BOX, keypoints=torch.from_numpy(truth[:1])), crowded)
    metrics = judge.compute()
    assert (metrics.ap, metrics.objects, metrics.similarity) == (pytest.approx(1), 1, pytest.approx(1))


def test_similarity_is_that_of_the_best_found_and_zero_where_nothing_was():
    judge = KeypointPrecision(NAMES, SIGMAS)
    truth = points_at((80, 80), (120, 120))
    near = truth + np.array([off_by(0.6, 100 * 100, SIGMAS[0]), 0, 0], np.float32) * [[[1], [0]]]
    guess = np.concatenate([points_at((190, 10), (10, 190)), near.astype(np.float32)])
    judge.add(
        found(BOX, BOX, scores=[0.9, 0.5], keypoints=torch.from_numpy(guess)), masked_record(BOX, keypoints=truth)
    )
    judge.add(found(keypoints=torch.zeros(0, 2, 3)), record(BOX, keypoints=truth))
    metrics = judge.compute()
    assert metrics.similarity == pytest.approx((0.8 + 0) / 2, abs=1e-3), "points of 0.6 and 1; then nothing found"


def test_of_keypoints_the_best_twenty_of_a_class_count():
    truth, wrong = points_at((80, 80), (120, 120)), points_at((190, 10), (10, 190))
    guess = torch.from_numpy(np.concatenate([*[wrong] * 20, truth]))
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(found(*[BOX] * 21, scores=[0.9] * 20 + [0.5], keypoints=guess), record(BOX, keypoints=truth))
    assert judge.compute().ap == 0


def test_each_object_of_a_class_has_its_own_similarity():
    truth = np.concatenate([points_at((20, 20), (40, 40)), points_at((200, 120), (260, 180))])
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(
        found(BOX, keypoints=torch.from_numpy(truth[:1])),
        record((10, 10, 50, 50), (190, 110, 270, 190), keypoints=truth),
    )
    assert judge.compute().similarity == pytest.approx(0.5, abs=1e-3)


def test_hidden_points_that_are_labelled_count_as_others_do():
    truth = points_at((80, 80), (120, 120), visibility=1)
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(found(BOX, keypoints=torch.from_numpy(truth)), record(BOX, keypoints=truth))
    metrics = judge.compute()
    assert (metrics.ap, metrics.objects) == (pytest.approx(1), 1)


def test_points_without_a_label_do_not_matter():
    truth = points_at((80, 80), (0, 0))
    truth[0, 1, 2] = 0
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(found(BOX, keypoints=torch.from_numpy(points_at((80, 80), (190, 10)))), record(BOX, keypoints=truth))
    assert judge.compute().ap == pytest.approx(1)


def test_objects_without_labelled_points_are_neither_found_nor_missed():
    other = shifted(BOX, 120)
    truth = np.concatenate([points_at((80, 80), (120, 120)), np.zeros((1, 2, 3), np.float32)])
    guess = np.concatenate([points_at((200, 80), (240, 120)), points_at((80, 80), (120, 120))])
    judge = KeypointPrecision(NAMES, SIGMAS)
    judge.add(
        found(other, BOX, scores=[0.9, 0.5], keypoints=torch.from_numpy(guess)), record(BOX, other, keypoints=truth)
    )
    metrics = judge.compute()
    assert metrics.ap == pytest.approx(1)
    assert metrics.objects == 1


def test_only_classes_that_carry_points_are_judged_for_points():
    truth = np.concatenate([points_at((80, 80), (120, 120)), np.zeros((1, 2, 3), np.float32)])
    judge = KeypointPrecision(NAMES, SIGMAS)
    guess = np.repeat(points_at((80, 80), (120, 120)), 2, axis=0)
    judge.add(
        found(shifted(BOX, 120), BOX, classes=[1, 0], scores=[0.9, 0.5], keypoints=torch.from_numpy(guess)),
        record(BOX, shifted(BOX, 120), classes=[0, 1], keypoints=truth),
    )
    assert judge.compute().per_class == {"cat": pytest.approx(1)}


def test_a_model_without_the_branch_is_told_so():
    with pytest.raises(DataError, match="needs detections with masks"):
        MaskPrecision(NAMES).add(found(BOX), masked_record(BOX))
    with pytest.raises(DataError, match="needs detections with keypoints"):
        KeypointPrecision(NAMES, SIGMAS).add(found(BOX), record(BOX))
