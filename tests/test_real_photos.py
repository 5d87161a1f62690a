"""The main job on real photos: multi-task models, trained before a frozen detector, judged on all three tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtyolo.api import build, train, validate
from mtyolo.checkpoint import load
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.model import Model

STILL = AugmentConfig(mosaic=0, flip=0, scale=0, translate=0, hue=0, saturation=0, value=0)
"""The same pictures in every epoch, so that a few epochs show whether losses fall."""

FROZEN = {"stages": [{"name": "frozen", "train": "all", "freeze": ["detector"]}]}
"""The first stage of --freeze-det."""


def lite0(test_data: Path, coco_mini: Path) -> Model:
    config = {
        "extractor": {
            "name": "timm/tf_efficientnet_lite0",
            "weights": str(test_data / "weights/tf_efficientnet_lite0.safetensors"),
        },
        "adapters": {"type": "conv", "depth": 2},
        "detector": {"graph": "yolov5n.yaml"},
        "tasks": {"detect": {}, "segment": {}, "keypoint": {}},
    }
    return build(config, data=coco_mini, weights=test_data / "weights/yolov5n.pt")


def own_backbone(test_data: Path, coco_mini: Path) -> Model:
    return build("yolov5n-multitask.yaml", data=coco_mini, weights=test_data / "weights/yolov5n.pt")


@pytest.mark.slow
@pytest.mark.parametrize("make", [lite0, own_backbone])
def test_three_tasks_train_before_a_frozen_detector(make, test_data: Path, coco_few: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(test_data, coco_few)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(
        epochs=4, imgsz=128, batch=8, optimizer="adamw", lr=0.002, workers=0, augment=STILL, val_every=4, device="cpu"
    )
    run = train(model, coco_few, plan=FROZEN, config=config, out=tmp_path, progress=False)

    epochs = [row for row in run.results if row["stage"] == "frozen"]
    names = [name for name in epochs[0] if name.startswith("loss/")]
    assert {"loss/detect.box", "loss/segment.mask", "loss/keypoint.location"} <= set(names)
    # A frozen detector behind its own backbone says the same about the same pictures. Visibility starts at how often
    # points are labelled, and four epochs hardly leave it. All else must learn.
    learns = [name for name in names if (make is lite0 or "detect" not in name) and name != "loss/keypoint.visibility"]
    assert [name for name in learns if not epochs[-1][name] < epochs[0][name]] == []

    detector = [name for name in before if name.startswith(("graph.", "branches.detect."))]
    assert any("running_var" in name for name in detector)
    after = load(run.last).state_dict()
    assert [name for name in detector if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("branches.keypoint"))

    metrics = validate(run.last, coco_few, size=128).as_dict()
    assert {"detect/AP", "segment/AP", "keypoint/AP"} <= metrics.keys()
    assert (tmp_path / "train_batch.jpg").stat().st_size > 10_000


@pytest.mark.slow
def test_more_tasks_leave_box_precision_as_it_was(test_data: Path, coco_mini: Path) -> None:
    several = validate(own_backbone(test_data, coco_mini), coco_mini, size=320).as_dict()["detect/AP"]
    official = validate(test_data / "weights/yolov5n.pt", coco_mini, size=320).as_dict()["detect/AP"]
    assert several == pytest.approx(official, abs=1e-6)
    assert official == pytest.approx(0.287, abs=0.005)
