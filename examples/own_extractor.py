"""Your own extractor class, used by its name in the model file and trained with the rest.

python examples/own_extractor.py [FOLDER]
"""

import sys
from pathlib import Path

from torch import Tensor, nn

import mtyolo
from mtyolo.data.shapes import make_shapes


class Patches(nn.Module):
    """One convolution per stride. An extractor says its levels, and gives {stride: [B, C, H/stride, W/stride]}."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.levels = tuple(mtyolo.Level(stride, width) for stride in (8, 16, 32))
        self.convolutions = nn.ModuleList(nn.Conv2d(3, width, stride, stride) for stride in (8, 16, 32))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """images: [B, 3, H, W] RGB in 0..1; normalise them as your network was trained."""
        features = (convolution(images - 0.5) for convolution in self.convolutions)
        return {level.stride: feature.relu() for level, feature in zip(self.levels, features, strict=True)}


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_extractor")
data = make_shapes(folder / "shapes", train=16, val=4, size=128)

config = {
    "extractor": {"name": "patches", "arguments": {"width": 48}},
    "detector": {"graph": "yolov5n.yaml"},
    "tasks": {"detect": {}, "keypoint": {}},
}
model = mtyolo.build(config, data=data, extractors={"patches": Patches})
quick = {"epochs": 2, "imgsz": 128, "batch": 8, "workers": 0}  # what else there is: mtyolo.TrainConfig
run = mtyolo.train(model, data, config=quick, out=folder / "run")

trained = mtyolo.load(run.last, extractors={"patches": Patches})
outputs = trained(next(trained.parameters()).new_zeros(1, 3, 128, 128))
print(f"trained {run.results[-1]['epoch']} epochs; features enter at strides {sorted(outputs.adapted)}")
