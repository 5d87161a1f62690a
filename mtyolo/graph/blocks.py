"""The building blocks of YOLOv5 graphs. Only this file and `families.py`, for teachers, import ultralytics.

Its import replaces torch.save and PIL.Image.open, sets OpenCV to one thread, changes environment variables, print
options and warning filters, and writes a settings file. All of that is put back here, so that using mtyolo leaves a
process as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

BATCHNORM_EPS = 1e-3
BATCHNORM_MOMENTUM = 0.03
"""Both from the official initialisation; torch's defaults (1e-5, 0.1) give other numbers."""


@contextlib.contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """Around whatever ultralytics does: no trace of it afterwards, no look at the network, no words."""
    environment, save, threads = dict(os.environ), torch.save, cv2.getNumThreads()
    image_open = Image.open  # ultralytics' own tries to install a package when a file is no image
    numpy_options: Any = np.get_printoptions()
    numpy_options.pop("override_repr", None)
    torch_options = dict(vars(torch._tensor_str.PRINT_OPTS))
    logger = logging.getLogger("ultralytics")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A settings folder of its own, no look at the network, and no words on the terminal.
        os.environ.update(YOLO_CONFIG_DIR=folder, YOLO_OFFLINE="true", YOLO_VERBOSE="false")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = False
            os.environ.clear()
            os.environ.update(environment)
            torch.save = save
            Image.open = image_open
            cv2.setNumThreads(threads)
            np.set_printoptions(**numpy_options)
            for name, value in torch_options.items():
                setattr(torch._tensor_str.PRINT_OPTS, name, value)


with process_left_as_it_was():
    from ultralytics.nn.modules import (
        C3,
        C3TR,
        SPP,
        BottleneckCSP,
        C3Ghost,
        Concat,
        Conv,
        DWConv,
        Focus,
        GhostBottleneck,
        GhostConv,
    )
    from ultralytics.nn.modules import SPPF as _SPPF
    from ultralytics.nn.modules import Bottleneck as _Bottleneck

# ultralytics has moved on where the three below differ; official YOLOv5 weights need them as they were.


class Bottleneck(_Bottleneck):
    """1x1 then 3x3 convolution (ultralytics: twice 3x3)."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, shortcut, g, k=(1, 3), e=e)


class CrossStagePartial(BottleneckCSP):
    """BottleneckCSP of YOLOv5, with YOLOv5's bottlenecks inside."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))


class SPPF(_SPPF):
    """Spatial pyramid pooling with an activation after its first convolution (ultralytics: none)."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__(c1, c2, k)
        self.cv1 = Conv(c1, c1 // 2, 1, 1)


class Prototypes(nn.Module):
    """YOLOv5's mask prototypes: nearest upsampling between convolutions (ultralytics: a transposed convolution).

    [B, channels_in, H, W] -> [B, prototypes, 2H, 2W].
    """

    def __init__(self, channels_in: int, channels: int, prototypes: int) -> None:
        super().__init__()
        self.cv1 = Conv(channels_in, channels, k=3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.cv2 = Conv(channels, channels, k=3)
        self.cv3 = Conv(channels, prototypes)

    def forward(self, finest: Tensor) -> Tensor:
        return self.cv3(self.cv2(self.upsample(self.cv1(finest))))


SCALED: dict[str, type[nn.Module]] = {
    "Conv": Conv,
    "DWConv": DWConv,
    "Focus": Focus,
    "GhostConv": GhostConv,
    "GhostBottleneck": GhostBottleneck,
    "Bottleneck": Bottleneck,
    "SPP": SPP,
    "SPPF": SPPF,
    "nn.ConvTranspose2d": nn.ConvTranspose2d,
}
"""Blocks called as (channels in, channels out, *arguments); the width multiple scales the channels out."""

STACKED: dict[str, type[nn.Module]] = {
    "C3": C3,
    "C3TR": C3TR,
    "C3Ghost": C3Ghost,
    "BottleneckCSP": CrossStagePartial,
}
"""Like SCALED, but they repeat inside: (channels in, channels out, repeats, *arguments)."""

PLAIN: dict[str, type[nn.Module]] = {
    "nn.Upsample": nn.Upsample,
    "nn.MaxPool2d": nn.MaxPool2d,
    "nn.AvgPool2d": nn.AvgPool2d,
    "nn.ZeroPad2d": nn.ZeroPad2d,
    "nn.Identity": nn.Identity,
}
"""Blocks that keep the number of channels, called as (*arguments)."""

JOINING: dict[str, type[nn.Module]] = {"Concat": Concat}
"""Blocks that take several inputs and add up their channels."""

BLOCKS = SCALED | STACKED | PLAIN | JOINING

HEADS = ("Detect", "Segment")
"""Last layers: they become branches."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("SiLU", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Mish", "GELU", "ELU", "Identity")
}


def finish(module: nn.Module, activation: nn.Module | None = None) -> None:
    """Give a freshly built module YOLOv5's BatchNorm constants and, instead of the shared SiLU, its own activation."""
    activation = activation or nn.SiLU(inplace=True)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = BATCHNORM_EPS, BATCHNORM_MOMENTUM
        elif isinstance(part, Conv) and part.act is Conv.default_act:
            part.act = activation
