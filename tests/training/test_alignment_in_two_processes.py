"""Alignment in two processes is that of one. On one picture many times over, as errors are over the variance of what a
process sees."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import exit_codes, start_pair

from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.training.train import train


def align(data: Path, out: Path, weights: Path, weight: float) -> None:
    """Alone or as one of two. weight: beside the tasks' losses; 0: alone."""
    torch.manual_seed(0)
    model = build(
        {
            "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
            "adapters": {"type": "conv", "match_statistics": True},
            "detector": {"graph": "yolov5n.yaml", "weights": str(weights)},
        },
        data=data,
    )
    config = TrainConfig(
        epochs=3, imgsz=64, batch=4, workers=0, device="cpu", warmup_epochs=0, optimizer="sgd", lr=0.01, momentum=0
    )
    stage: dict[str, Any] = {"name": "align", "train": ["adapters"], "norms": "frozen", "augment": False}
    stage |= {"align": weight} if weight else {"objective": "align", "arguments": {"fused": 1.0, "maps": 1.0}}
    train(model, data, plan={"stages": [stage]}, config=config, out=out, progress=False)


@pytest.fixture
def one_picture(shapes: Path, tmp_path: Path) -> Path:
    """Eight copies of it, with its labels."""
    content = yaml.safe_load(shapes.read_text())
    labels = json.loads((shapes.parent / "train.json").read_text())
    first = labels["images"][0]
    (tmp_path / "images").mkdir()
    source = next(shapes.parent.rglob(Path(first["file_name"]).name))
    copies = [first | {"id": number, "file_name": f"{number}{source.suffix}"} for number in range(8)]
    own = [annotation for annotation in labels["annotations"] if annotation["image_id"] == first["id"]]
    assert own
    marks = [
        mark | {"id": 100 * copy["id"] + number, "image_id": copy["id"]}
        for copy in copies
        for number, mark in enumerate(own)
    ]
    for copy in copies:
        shutil.copy(source, tmp_path / "images" / copy["file_name"])
    (tmp_path / "train.json").write_text(json.dumps(labels | {"images": copies, "annotations": marks}))
    data = {"path": str(tmp_path), "train": "images", "annotations": {"train": "train.json"}}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({key: content[key] for key in ("names", "kpt_shape") if key in content} | data))
    return path


def losses(out: Path) -> list[dict[str, float]]:
    with (out / "results.csv").open() as file:
        return [{key: float(row[key]) for key in row if key.startswith("loss/")} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_errors_and_weights_are_those_of_one_process(
    weight: float, test_data: Path, one_picture: Path, tmp_path: Path
) -> None:
    """Alone, matched at the start and through the graph; and beside the tasks' losses.

    To a thousandth: a variance divides by one less than the number of values, and a process sees half of them."""
    weights = test_data / "weights" / "yolov5n.pt"
    align(one_picture, tmp_path / "one", weights, weight)
    assert exit_codes(start_pair(align, one_picture, tmp_path / "two", weights, weight)) == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 3
    assert one[-1]["loss/align"] < one[0]["loss/align"]
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)
    alone, together = (torch.load(tmp_path / name / "state.pt", weights_only=True)["model"] for name in ("one", "two"))
    moved = [name for name in alone if name.startswith("adapters.") and alone[name].is_floating_point()]
    assert moved
    for name in moved:
        assert torch.allclose(alone[name], together[name], rtol=1e-3, atol=1e-4), name
