"""A model small enough to train in a second."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from mtyolo.assembly import build
from mtyolo.config.model import shipped_configs
from mtyolo.model import Model

SIZE = 128


def tiny_model(names: dict[int, str] | None = None, seed: int = 0, **tasks: Any) -> Model:
    """The official layer list at a fraction of its width; weights drawn from the seed."""
    torch.manual_seed(seed)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    chosen = {"detect": {}} | tasks
    return build({"detector": {"graph": graph}, "tasks": chosen}, names=names or {0: "square", 1: "disc"}, points=2)
