"""Teachers and pictures that tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtyolo.data.shapes import make_shapes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """results.png takes as long as a run of six pictures; tests/training looks at it."""
    monkeypatch.setattr("mtyolo.training.records.run.plot_results", lambda rows, path: None)


@pytest.fixture
def yolov5n(test_data: Path) -> str:
    return str(test_data / "weights" / "yolov5n.pt")


@pytest.fixture(scope="session")
def pictures(test_data: Path) -> Tensor:
    """[2, 3, 320, 320] uint8: two letterboxed photos."""
    with np.load(test_data / "reference" / "yolov5n_loss_reference.npz") as reference:
        return torch.from_numpy(reference["images"][:2])


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file: drawn creatures of 64 pixels with boxes, masks and points."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=4, size=64)
