"""An exported network with numpy and onnxruntime alone, as on a device without torch and mtyolo.

mtyolo export --model runs/train/best.safetensors --out best.onnx
python examples/without_torch.py best.onnx bus.jpg

Boxes, masks and keypoints are those of `mtyolo.predict`, nearly: pixels differ by one in 255 where pictures are
resized, masks are taken at a quarter of the input's size, and keypoints as the anchors have them, before heat-maps move
them to where the picture shows them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

GREY, CONFIDENCE, OVERLAP = 114, 0.25, 0.45


def letterboxed(picture, size):
    """[1, 3, size, size] in 0..1, grey around the picture, and how to get back: x = (x_input - left) / ratio."""
    ratio = size / max(picture.size)
    width, height = (round(side * ratio) for side in picture.size)
    left, top = (size - width) // 2, (size - height) // 2
    canvas = np.full((size, size, 3), GREY, np.float32)
    scale = (picture.width / width, 0, 0, 0, picture.height / height, 0)
    # Not picture.resize, which takes means of what it makes smaller: results would not be those of mtyolo.predict.
    inner = picture.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = inner
    return canvas.transpose(2, 0, 1)[None] / 255, ratio, left, top


def best_rows(decoded):
    """Numbers of the rows that stay, best first, with their class and score: of boxes of a class that overlap, one."""
    scores = decoded[:, 5:] * decoded[:, 4:5]
    classes, best = scores.argmax(1), scores.max(1)
    half = decoded[:, 2:4] / 2
    corners = np.hstack((decoded[:, :2] - half, decoded[:, :2] + half))
    kept = []
    for row in np.argsort(-best):
        if best[row] <= CONFIDENCE:
            break
        if all(classes[row] != classes[other] or iou(corners[row], corners[other]) <= OVERLAP for other in kept):
            kept.append(row)
    return kept, classes, best, corners


def iou(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["mtyolo"])
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")  # upright, as cameras note it
images, ratio, left, top = letterboxed(picture, about["size"])
names = [output.name for output in session.get_outputs()]
with_points = (about["keypoint"] or {}).get("classes") or range(len(about["names"]))  # classes by their number
outputs = dict(zip(names, session.run(names, {"images": images}), strict=True))
decoded = outputs["decoded"][0]

rows, classes, scores, corners = best_rows(decoded)
for row in rows:
    box = np.clip((corners[row] - [left, top, left, top]) / ratio, 0, [*picture.size, *picture.size])
    said = f"{about['names'][str(classes[row])]} {scores[row]:.2f} at {' '.join(f'{value:.0f}' for value in box)}"
    if "prototypes" in outputs:
        mask = sigmoid(np.tensordot(outputs["coefficients"][0, row], outputs["prototypes"][0], 1)) > 0.5
        scale = mask.shape[0] / about["size"]
        x1, y1, x2, y2 = ((box * ratio + [left, top, left, top]) * scale).round().astype(int)
        said += f", mask of {mask[y1:y2, x1:x2].sum() / (scale * ratio) ** 2:.0f} pixels"
    if "points" in outputs and classes[row] in with_points:
        raw = outputs["points"][0, row].reshape(-1, 3)
        points = (decoded[row, :2] + raw[:, :2] * decoded[row, 2:4] - [left, top]) / ratio
        said += f", {(sigmoid(raw[:, 2]) > 0.5).sum()} of {len(points)} points visible"
    print(said)
print(f"{Path(sys.argv[2]).name}: {len(rows)} objects")
