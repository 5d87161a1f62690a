"""The judges, told of labels as mtyolo reads them, against faster-coco-eval reading the json files itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle_codec

from mtyolo.data.records import ImageRecord, Split
from mtyolo.data.split import load_split
from mtyolo.evaluation.keypoints import KeypointPrecision
from mtyolo.evaluation.masks import MaskPrecision
from mtyolo.evaluation.precision import BoxPrecision, Judge
from mtyolo.structures import Detections

JUDGED = {"bbox": BoxPrecision, "segm": MaskPrecision, "keypoints": KeypointPrecision}


@pytest.fixture(scope="module")
def val(coco_mini: Path) -> Split:
    return load_split(coco_mini, "val")


def judge_of(kind: str, split: Split) -> Judge:
    if kind == "keypoints":
        assert split.sigmas is not None
        return KeypointPrecision(split.names, split.sigmas)
    return BoxPrecision(split.names) if kind == "bbox" else MaskPrecision(split.names)


def moved_truth(record: ImageRecord, random: np.random.Generator, largest: float) -> Detections:
    """Labels, each moved by up to `largest` of its box, in an order of its own; best first."""
    labels, count = record.labels, len(record.labels)
    order = random.permutation(count)
    sizes = labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]
    move = (random.uniform(-largest, largest, (count, 2)) * sizes).round().astype(np.float32)
    masks = np.zeros((count, record.height, record.width), np.bool_)
    for number, rle in enumerate(labels.segments or []):
        down, across = int(move[number, 1]), int(move[number, 0])
        masks[number] = np.roll(rle_codec.decode(rle), (down, across), (0, 1))
    assert labels.keypoints is not None
    keypoints = labels.keypoints.copy()
    keypoints[..., :2] += move[:, None]
    # Where a person has no labelled points, a guess inside of the box.
    blank = (labels.keypoints[..., 2] == 0).all(1)
    keypoints[blank, :, :2] = labels.boxes_xyxy[blank][:, None, :2] + sizes[blank][:, None] / 2
    return Detections(
        torch.from_numpy((labels.boxes_xyxy + np.tile(move, 2))[order]),
        torch.linspace(0.9, 0.1, count),
        torch.from_numpy(labels.classes[order]),
        torch.from_numpy(masks[order]),
        torch.from_numpy(keypoints[order]),
        (record.height, record.width),
    )


def result_rows(found: Detections, record: ImageRecord, split: Split) -> list[dict[str, Any]]:
    """The same detections in the form that COCO's server takes."""
    assert found.masks is not None
    assert found.keypoints is not None
    assert split.category_ids is not None
    sizes = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
    return [
        {
            "image_id": record.identity,
            "category_id": split.category_ids[int(found.classes[number])],
            "score": float(found.scores[number]),
            "bbox": [*found.boxes_xyxy[number, :2].tolist(), *sizes[number].tolist()],
            "segmentation": rle_codec.encode(np.asfortranarray(found.masks[number].numpy())),
            "keypoints": found.keypoints[number].flatten().tolist(),
        }
        for number in range(len(found))
    ]


def outside_precision(kind: str, rows: list[dict[str, Any]], annotations: Path) -> float:
    name = "person_keypoints_val.json" if kind == "keypoints" else "instances_val.json"
    truth = COCO(str(annotations / name))
    keys = {"image_id", "category_id", "score", kind.replace("segm", "segmentation")}
    people = set(truth.cats)
    own = [{key: row[key] for key in keys} for row in rows if row["category_id"] in people]
    evaluation = COCOeval_faster(truth, truth.loadRes(own), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_keypoints_without_outlines_are_measured_by_the_area_of_the_json(
    coco_mini: Path, test_data: Path, tmp_path: Path
) -> None:
    """Which is the outline's in COCO, and 0.53 of the box only where nothing says more."""
    root = test_data / "coco_mini"
    content = json.loads((root / "annotations" / "person_keypoints_val.json").read_text())
    bare = [{key: a[key] for key in a if key != "segmentation"} for a in content["annotations"]]
    (tmp_path / "points.json").write_text(json.dumps(content | {"annotations": bare}))
    data = yaml.safe_load(coco_mini.read_text())
    (tmp_path / "data.yaml").write_text(
        yaml.safe_dump(data | {"annotations": {"val": [str(tmp_path / "points.json")]}})
    )
    values = []
    for file in (coco_mini, tmp_path / "data.yaml"):
        split, random = load_split(file, "val"), np.random.default_rng(0)
        judge = judge_of("keypoints", split)
        for record in split.records:
            judge.add(moved_points(record, random), record)
        values.append(judge.compute().ap)
    assert 0.05 < values[0] < 0.95
    assert values[1] == pytest.approx(values[0], abs=5e-3)


def moved_points(record: ImageRecord, random: np.random.Generator) -> Detections:
    """Of people with labelled points, these moved by up to a tenth of the box."""
    labels = record.labels
    assert labels.keypoints is not None
    keep = (labels.keypoints[..., 2] > 0).any(1)
    boxes, keypoints = labels.boxes_xyxy[keep], labels.keypoints[keep].copy()
    keypoints[..., :2] += random.uniform(-0.1, 0.1, (len(boxes), 1, 2)) * (boxes[:, None, 2:] - boxes[:, None, :2])
    scores, classes = torch.linspace(0.9, 0.1, len(boxes)), torch.from_numpy(labels.classes[keep])
    return Detections(torch.from_numpy(boxes), scores, classes, keypoints=torch.from_numpy(keypoints))


@pytest.mark.parametrize("kind", JUDGED)
@pytest.mark.parametrize("largest", [0.0, 0.15])
def test_precision_is_that_of_coco_on_its_own_files(val: Split, test_data: Path, kind: str, largest: float):
    random = np.random.default_rng(0)
    judge, rows = judge_of(kind, val), []
    for record in val.records:
        found = moved_truth(record, random, largest)
        judge.add(found, record)
        rows += result_rows(found, record, val)
    ours = judge.compute().ap
    assert ours == pytest.approx(outside_precision(kind, rows, test_data / "coco_mini/annotations"), abs=2e-4)
    # One photo holds more people than the 20 that COCO judges keypoints of.
    assert ours > (0.8 if kind == "keypoints" else 0.999) if largest == 0 else 0.05 < ours < 0.95
