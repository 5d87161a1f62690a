"""Students and teachers that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from mtyolo.assembly import build
from mtyolo.config.model import shipped_configs
from mtyolo.model import Model

SIZE = 128


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model(names: dict[int, str] | None = None, seed: int = 0, **tasks: Any) -> Model:
    """The official layer list at a fraction of its width; weights drawn from the seed."""
    torch.manual_seed(seed)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    chosen = {"detect": {}} | tasks
    return build({"detector": {"graph": graph}, "tasks": chosen}, names=names or {0: "square", 1: "disc"}, points=2)


@pytest.fixture
def yolov5n(test_data: Path) -> str:
    return str(test_data / "weights" / "yolov5n.pt")


@pytest.fixture(scope="session")
def pictures(test_data: Path) -> Tensor:
    """[2, 3, 320, 320] uint8: two letterboxed photos."""
    with np.load(test_data / "reference" / "yolov5n_loss_reference.npz") as reference:
        return torch.from_numpy(reference["images"][:2])
