"""A small data set of drawn creatures with boxes, masks and keypoints, for the demo, examples and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray
from PIL import Image

from mtyolo.data.creatures import (
    CLASSES,
    FLIP_IDX,
    KEYPOINTS,
    SKELETON,
    SUPERSAMPLING,
    Creature,
    draw_background,
    draw_creature,
)
from mtyolo.errors import DataError

SPLITS = ("train", "val")
SMALLEST, LARGEST = 0.09, 0.19
"""Radius of a creature's body, as a fraction of the picture's side."""
MOST_CREATURES = 4
LEAST_SEEN = 0.4
"""Of a creature's area: those hidden more are not labelled, because a person could not tell what they are."""
CLOSEST = 1.0
"""Distance of two creatures' centres, in units of the larger radius: the least that is tried for."""
KEYPOINT_SIGMA = 0.07
"""OKS falloff of every point: COCO's for shoulders and elbows are 0.079 and 0.072."""


def make_shapes(folder: str | Path, train: int = 160, val: int = 40, size: int = 256, seed: int = 0) -> Path:
    """Draw `train` and `val` square pictures of `size` pixels with COCO json beside them; returns the data file.

    The same seed gives the same pictures, and the first pictures do not depend on how many there are.
    Raises DataError where the folder can not be written.
    """
    folder = Path(folder)
    try:
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        for number, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            content = _draw_split(folder / "images" / split, count, size, (seed, number))
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
        path = folder / "shapes.yaml"
        path.write_text(yaml.safe_dump(_data_file(), sort_keys=False))
    except OSError as error:
        raise DataError(f"{folder}: the drawn data set can not be written there: {error}") from None
    return path


def drawn_pictures(count: int, size: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """[size, size, 3] RGB each, of the same kind."""
    return [np.asarray(_draw_scene(size, np.random.default_rng((seed, number)))[0]) for number in range(count)]


def _data_file() -> dict[str, Any]:
    return {
        "path": ".",
        **{split: f"images/{split}" for split in SPLITS},
        "annotations": {split: f"annotations/{split}.json" for split in SPLITS},
        "names": dict(enumerate(CLASSES)),
        "kpt_shape": [len(KEYPOINTS), 3],
        "flip_idx": list(FLIP_IDX),
        "skeleton": [list(pair) for pair in SKELETON],
        "kpt_sigmas": [KEYPOINT_SIGMA] * len(KEYPOINTS),
    }


def _draw_split(folder: Path, count: int, size: int, seed: tuple[int, int]) -> dict[str, Any]:
    """Write the pictures; return their COCO json."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        picture, objects = _draw_scene(size, np.random.default_rng((*seed, number)))
        name = f"{number:04d}.jpg"
        picture.save(folder / name, quality=92)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for found in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    categories = [{"id": number, "name": name, "keypoints": list(KEYPOINTS)} for number, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _draw_scene(size: int, random: np.random.Generator) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture and the annotations of the creatures that can be seen in it; later ones stand before earlier ones."""
    picture = draw_background(size, random)
    creatures = _place_creatures(size, random)
    numbers = Image.new("L", picture.size)
    whole = []  # pixels of each creature before others cover it
    for number, creature in enumerate(creatures, 1):
        draw_creature(picture, numbers, creature, number)
        whole.append((np.asarray(numbers) == number).sum() / SUPERSAMPLING**2)
    seen = np.asarray(numbers.resize((size, size), Image.Resampling.NEAREST))
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    annotated = [
        _annotation(creature, seen, number)
        for number, creature in enumerate(creatures, 1)
        if (seen == number).sum() > LEAST_SEEN * whole[number - 1]
    ]
    return small, annotated


def _place_creatures(size: int, random: np.random.Generator) -> list[Creature]:
    creatures: list[Creature] = []
    for _ in range(random.integers(1, MOST_CREATURES + 1)):
        radius = size * random.uniform(SMALLEST, LARGEST)
        centre = random.uniform(radius, size - radius, 2)
        near = [np.hypot(*(centre - other.centre)) / max(radius, other.radius) for other in creatures]
        if min(near, default=np.inf) < CLOSEST:
            continue
        feet = random.uniform((0.25, 1.3), (0.7, 1.55), (2, 2))
        creatures.append(
            Creature(
                kind=int(random.integers(len(CLASSES))),
                centre=(float(centre[0]), float(centre[1])),
                radius=float(radius),
                stretch=float(random.uniform(0.8, 1.25)),
                angle=float(random.uniform(-0.35, 0.35)),
                hue=float(random.uniform()),
                feet=((-float(feet[0, 0]), float(feet[0, 1])), (float(feet[1, 0]), float(feet[1, 1]))),
            )
        )
    return creatures


def _annotation(creature: Creature, seen: NDArray[np.uint8], number: int) -> dict[str, Any]:
    """What can be seen of a creature: its box is that of its visible pixels, as COCO's are."""
    mask = seen == number
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    rle = rle_codec.encode(np.asfortranarray(mask, np.uint8))
    keypoints = _keypoints(creature, seen, number)
    return {
        "category_id": creature.kind,
        "bbox": [
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        ],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
        "keypoints": keypoints,
        "num_keypoints": sum(visibility > 0 for visibility in keypoints[2::3]),
    }


def _keypoints(creature: Creature, seen: NDArray[np.uint8], number: int) -> list[float]:
    """Flat x, y, v: 2 seen, 1 behind another creature, 0 outside the picture."""
    flat: list[float] = []
    for x, y in creature.keypoints():
        inside = 0 <= x < seen.shape[1] and 0 <= y < seen.shape[0]
        visible = inside and seen[int(y), int(x)] == number
        flat += [round(float(x), 2), round(float(y), 2), 2 if visible else 1] if inside else [0, 0, 0]
    return flat
