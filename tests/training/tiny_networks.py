"""A network small enough to train in a second."""

from __future__ import annotations

from typing import Any

import yaml

from mtyolo.config.model import shipped_configs

THREE_TASKS: dict[str, Any] = {"detect": {}, "segment": {"prototypes": 4, "channels": 8}, "keypoint": {}}


def tiny_graph() -> dict[str, Any]:
    """The official layer list at a tenth of yolov5n's width."""
    content = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    return content | {"width_multiple": 0.05, "depth_multiple": 0.1}
