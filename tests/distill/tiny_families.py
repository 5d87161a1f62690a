"""Ultralytics models of the installed package at a fraction of their width, with random weights that say something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_students import with_statistics
from torch import nn

from mtyolo.graph.blocks import process_left_as_it_was
from mtyolo.graph.families import NETWORKS

SMALL = {"scales": {"n": [0.2, 0.05, 256]}}
"""depth, width, most channels."""
NAMES = {0: "square", 1: "disc"}
SPREAD, SPREAD_OF_DISTANCES = 1.5, 0.5
"""Of what heads say from cell to cell."""
FALL = 0.7
"""Of the logits of distances: boxes of a few cells, as anchors can express them."""


def family_file(folder: Path, graph: str, *, names: Mapping[int, str] = NAMES, **options: Any) -> Path:
    """A `.pt` of a detect, segment or pose model, as the package saves it. options: of its YAML, such as kpt_shape."""
    torch.manual_seed(0)
    with process_left_as_it_was():
        from ultralytics.nn import tasks

        content = tasks.yaml_model_load(graph) | SMALL | options
        network = getattr(tasks, NETWORKS[content["head"][-1][2]])(content, nc=len(names), verbose=False)
    network.names = dict(names)
    _speak_up(network)
    path = folder / graph.replace(".yaml", ".pt")
    torch.save({"model": network}, path)
    return path


@torch.no_grad()
def _speak_up(network: Any) -> None:
    """Heads that say something else in each cell."""
    head = with_statistics(network).model[-1]
    further = getattr(head, "cv4_kpts", getattr(head, "cv4", [None] * head.nl))
    for boxes, classes, extra in zip(head.cv2, head.cv3, further, strict=True):
        last = extra if extra is None or isinstance(extra, nn.Conv2d) else extra[-1]
        for layer, spread in ((boxes[-1], SPREAD_OF_DISTANCES), (classes[-1], SPREAD), (last, SPREAD)):
            if layer is not None:
                nn.init.normal_(layer.weight, std=spread / layer.in_channels**0.5)
                nn.init.zeros_(layer.bias)
        # Without a distribution the distances, in cells, come as they are: a few of them below zero.
        boxes[-1].bias.view(4, -1).sub_(FALL * torch.arange(head.reg_max) if head.reg_max > 1 else torch.tensor(-1.0))
