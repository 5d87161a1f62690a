"""Two processes stay together: to the end, early or late, on a signal to one, and where one has nothing to learn."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import exit_codes, start_pair
from tiny_networks import tiny_graph

from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.evaluation.validate import validate
from mtyolo.training.records.judging import Judge
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train


class Always:
    fitness = 0.5

    def as_dict(self) -> dict[str, Any]:
        return {"fitness": 0.5}


def train_together(
    data: Path, folder: Path, out: str | None, stage: dict[str, Any], judged: bool, options: dict[str, Any]
) -> None:
    """In each of two processes, standing in the folder."""
    os.chdir(folder)
    model = build({"detector": {"graph": tiny_graph()}, "tasks": {"detect": {}, "keypoint": {}}}, data=data)
    config = TrainConfig(imgsz=64, workers=0, device="cpu", **options)
    plan = {"balance": "pcgrad", "stages": [{"name": "one", **stage}]}
    judge = Judge(validate if judged else lambda *_, **__: Always())
    try:
        train(model, data, plan=plan, config=config, out=out, progress=False, judge=judge)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


def together(
    data: Path,
    folder: Path,
    out: str | None = "run",
    *,
    stage: dict[str, Any] | None = None,
    judged: bool = False,
    **options: Any,
) -> list[BaseProcess]:
    return start_pair(train_together, data, folder, out, stage or {}, judged, options)


@pytest.mark.slow
def test_both_stop_when_the_fitness_stays(shapes: Path, tmp_path: Path) -> None:
    pair = together(shapes, tmp_path, epochs=9, patience=2, batch=4)
    assert exit_codes(pair) == [0, 0]
    results = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["run"]["results"]
    assert [row["epoch"] for row in results] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_signal_to_one_ends_both_and_the_first_saves(shapes: Path, tmp_path: Path) -> None:
    pair = together(shapes, tmp_path, epochs=2000, batch=4)
    results = tmp_path / "run" / "results.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (results.exists() and len(results.read_text().splitlines()) > 3):
        time.sleep(0.05)
    os.kill(pair[1].pid or 0, signal.SIGTERM)
    assert exit_codes(pair, 120) == [143, 143]
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    epochs = [row["epoch"] for row in saved["run"]["results"]]
    assert len(epochs) > 2
    assert epochs == [*range(len(epochs))]
    assert saved["position"]["epoch"] == epochs[-1]


@pytest.fixture
def half_pointless(shapes: Path) -> Path:
    """The shapes, on every second picture without a labelled point."""
    content = json.loads((shapes.parent / "train.json").read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] % 2:
            annotation |= {"keypoints": [0] * 6, "num_keypoints": 0}
    (shapes.parent / "half.json").write_text(json.dumps(content))
    path = shapes.parent / "half.yaml"
    path.write_text(shapes.read_text().replace("train.json", "half.json"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["keypoint"], ["detector.neck", "detect", "keypoint"]])
def test_a_process_whose_part_of_a_batch_says_nothing_takes_part(
    parts: list[str], half_pointless: Path, tmp_path: Path
) -> None:
    """Each has one picture at a time, so that often one alone has a gradient. Without --out both take one folder."""
    stage = {"train": parts, "tasks": ["keypoint"] if len(parts) == 1 else None}
    pair = together(half_pointless, tmp_path, None, stage=stage, epochs=2 + len(parts), batch=2)
    assert exit_codes(pair) == [0, 0]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]
    results = torch.load(tmp_path / "runs" / "train" / "state.pt", weights_only=True)["run"]["results"]
    assert results[-1]["epoch"] == 2 + len(parts)
    assert results[-1]["loss/keypoint"] > 0


@pytest.mark.slow
def test_the_first_judges_while_the_other_goes_on(shapes: Path, tmp_path: Path) -> None:
    pair = together(shapes, tmp_path, judged=True, epochs=3, batch=4)
    assert exit_codes(pair) == [0, 0]
    results = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["run"]["results"]
    assert [row["epoch"] for row in results if "detect/AP" in row] == [0, 1, 2, 3]
