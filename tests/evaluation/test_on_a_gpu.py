"""What a GPU finds is what a CPU finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtyolo.assembly import build
from mtyolo.checkpoint import load
from mtyolo.data.split import load_split
from mtyolo.evaluation.pictures import comparison
from mtyolo.evaluation.validate import validate
from mtyolo.prediction.predict import predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_the_official_network_has_its_precision_on_a_gpu(test_data: Path, coco_mini: Path) -> None:
    metrics = validate(load(test_data / "weights/yolov5n.pt"), load_split(coco_mini, "val"), size=320, device="cuda")
    found = metrics.tasks["detect"]
    assert found.ap == pytest.approx(0.2874, abs=0.005)
    assert found.ap50 == pytest.approx(0.5088, abs=0.005)


def test_masks_and_keypoints_are_judged_and_drawn_on_a_gpu_as_on_a_cpu(test_data: Path, coco_mini: Path) -> None:
    split = load_split(coco_mini, "val")
    few = replace(split, records=split.records[:6])
    torch.manual_seed(0)
    tasks = {"detect": {}, "segment": {"prototypes": 8}, "keypoint": {"points": 17}}
    content = {"detector": {"graph": "yolov5n.yaml"}, "tasks": tasks}
    model = build(content, weights=test_data / "weights/yolov5n.pt", names=split.names)
    on_cpu = validate(model, few, size=320).as_dict()
    drawn = comparison(model, few, size=320)
    on_gpu = validate(model, few, size=320, device="cuda").as_dict()
    assert {name for name in on_cpu if "ms" not in name} <= on_gpu.keys()
    for name in ("detect/AP", "segment/AP", "keypoint/AP", "keypoint/OKS"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], abs=1e-3), name
    assert comparison(model, few, size=320).shape == drawn.shape


def test_detections_on_a_gpu_are_those_on_a_cpu(test_data: Path) -> None:
    photos = [test_data / f"images/{name}.jpg" for name in ("bus", "zidane")]
    weights = test_data / "weights/yolov5n.pt"
    for one, other in zip(predict(weights, photos), predict(weights, photos, device="cuda"), strict=True):
        assert other.classes.tolist() == one.classes.tolist()
        torch.testing.assert_close(other.boxes, one.boxes, atol=0.5, rtol=0)
        torch.testing.assert_close(other.scores, one.scores, atol=0.005, rtol=0)
