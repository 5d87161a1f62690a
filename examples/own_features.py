"""Features from anywhere, as tensors: any program can stand where the extractor stands.

python examples/own_features.py
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pixel_unshuffle

import mtyolo


def my_features(images: Tensor) -> dict[int, Tensor]:
    """Here: the pixels of 8x8 patches as channels, then coarser by averaging. Yours: whatever you have."""
    fine = pixel_unshuffle(images, 8)
    return {8: fine, 16: avg_pool2d(fine, 2), 32: avg_pool2d(fine, 4)}


config = {
    "extractor": {"name": "features", "levels": {8: 192, 16: 192, 32: 192}},  # stride: channels
    "adapters": {"type": "conv"},
    "detector": {"graph": "yolov5n.yaml"},
    "tasks": {"detect": {}, "segment": {}, "keypoint": {"points": 5}},
    "names": {0: "ball", 1: "box"},
}
model = mtyolo.build(config)
images = torch.rand(2, 3, 320, 320)

outputs = model(pyramid=my_features(images))

print("maps:", [tuple(level.shape) for level in outputs.detect])  # [B, anchors, H, W, 5 + classes]
print("decoded:", tuple(model.decode(outputs).shape))  # x, y, w, h in pixels, objectness, classes
print("prototypes:", tuple(outputs.segment.prototypes.shape))
print("layers that were not built:", len(model.graph.spec.layers) - len(model.graph.layers))

sum(level.mean() for level in outputs.detect).backward()  # a loss of yours; it reaches the adapters
print("adapters learn:", all(parameter.grad is not None for parameter in model.adapters.parameters()))
