"""The demo leaves what it says it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mtyolo import demonstration
from mtyolo.checkpoint import load


@pytest.mark.slow
def test_demo_trains_on_a_frozen_extractor_and_leaves_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "TRAINING_IMAGES", 8)
    monkeypatch.setattr(demonstration, "VALIDATION_IMAGES", 2)
    monkeypatch.setattr(demonstration, "TRAINED_SIZE", 64)
    left = demonstration.demonstrate(tmp_path / "demo", epochs=1, device="cpu", say=lambda text: None)

    assert {task: found.images for task, found in left.metrics.tasks.items()} == dict.fromkeys(
        ("detect", "segment", "keypoint"), 2
    )
    for picture in (left.labels, left.comparison, *left.predictions):
        with Image.open(picture) as opened:
            assert opened.width >= 640
    trained = load(left.weights).extractor
    fresh = demonstration.build(demonstration.MODEL).extractor
    assert trained is not None
    assert fresh is not None
    tensors = fresh.state_dict()
    assert all(tensor.equal(tensors[name]) for name, tensor in trained.state_dict().items())
