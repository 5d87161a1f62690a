"""Features are made on a GPU as on a CPU, and train there wherever they lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_aligning_from_store import CONFIG, STAGE, files, make
from tiny_features import SIZE, TinyExtractor

from mtyolo.api import train
from mtyolo.cli.main import main
from mtyolo.data.records import Split
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.writer import extract

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

__all__ = ["files"]  # a fixture


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_features_from_a_gpu_are_those_from_a_cpu(
    dtype: Any, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for device in ("cpu", "cuda"):
        options = ExtractOptions(batch=4, dtype=dtype, device=device)
        extract(TinyExtractor(), [split], tmp_path / device, SIZE, options)
        store = FeatureStore.open(tmp_path / device)
        found.append(store.read("train", [[store.whole(row)] for row in range(10)]))
    for stride, expected in found[0].items():
        torch.testing.assert_close(found[1][stride], expected, rtol=1e-3, atol=0.02 if dtype == "int8" else 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
@pytest.mark.parametrize("objective", ["align", "tasks"])
def test_training_on_a_gpu_from_a_store_that_was_made_on_one(
    objective: str,
    precision: str,
    files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    model_file, data = files
    names = ["--model", str(model_file), "--data", str(data), "--imgsz", str(SIZE), "--out", str(tmp_path / "store")]
    assert main(["extract", *names, "--trust", "--targets", "--device", "cuda"]) == 0
    config = CONFIG.model_copy(update={"device": "cuda", "precision": precision, "workers": 2})
    stage = STAGE if objective == "align" else {"name": "joint", "train": ["adapters", "detector", "keypoint"]}
    results = []
    for number in range(2):
        model = make(files, features=tmp_path / "store")
        run = train(
            model,
            data,
            plan={"stages": [stage | {"augment": False}]},
            config=config,
            out=tmp_path / f"run{number}",
            features=tmp_path / "store",
            progress=False,
        )
        results.append(run.results[-1])
    loss = "loss/align" if objective == "align" else "loss/detect"
    assert all(math.isfinite(float(row[loss] or math.nan)) and row["skipped"] == 0 for row in results)
    assert results[0][loss] == pytest.approx(results[1][loss], rel=0.05), "the same twice"
