"""Build, train, predict: three lines of Python. Here on drawn pictures, so that it runs as it is.

python examples/three_lines.py [FOLDER]
"""

import sys
from pathlib import Path

import mtyolo
from mtyolo.data.shapes import make_shapes

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/three_lines")
data = make_shapes(folder / "shapes", train=48, val=8, size=128)
quick = {"epochs": 6, "imgsz": 128, "batch": 4, "optimizer": "adamw", "lr": 0.003, "workers": 0, "val_every": 6}
quick["augment"] = {"mosaic": 0}

model = mtyolo.build("shapes-lite0.yaml", data=data)
run = mtyolo.train(model, data, plan="demo", config=quick, out=folder / "run")
results = mtyolo.predict(run.best, folder / "shapes/images/val", confidence=0.1)

best = max(results, key=len)
print(f"{len(best)} objects; boxes {tuple(best.boxes.shape)}, masks {tuple(best.masks.shape)}, ", end="")
print(f"keypoints {tuple(best.keypoints.shape)}; drawn to {best.save(folder / 'found.jpg')}")
