"""A model small enough to train in a second."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import yaml
from torch import nn

from mtyolo.assembly import build
from mtyolo.config.model import shipped_configs
from mtyolo.model import Model

SIZE = 128

Network = TypeVar("Network", bound=nn.Module)


def tiny_model(
    names: dict[int, str] | None = None, seed: int = 0, *, points: int = 2, width: float = 0.05, **tasks: Any
) -> Model:
    """The official layer list at a fraction of its width, in training mode; weights drawn from the seed."""
    torch.manual_seed(seed)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": width, "depth_multiple": 0.1}
    chosen = {"detect": {}} | tasks
    named = names or {0: "square", 1: "disc"}
    return build({"detector": {"graph": graph}, "tasks": chosen}, names=named, points=points).train()


@torch.no_grad()
def with_statistics(network: Network) -> Network:
    """Norms with the statistics of noise: in evaluation, a picture is not lost on its way through random weights."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
