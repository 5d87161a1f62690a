"""Features that lie in .npy files, as a store to train on and to predict from. See docs/features.md.

python examples/npy_features.py DATA ARRAYS STORE [SPLIT]

DATA is a data file or a folder of pictures; ARRAYS/8/0001.npy is what picture 0001.jpg has at stride 8, [C, h, w].
Then, with a model file that says extractor: {name: features, levels: {8: C, …}}, and a store of the new pictures:

mtyolo train --model MODEL --data DATA --features STORE
mtyolo predict --model runs/train/best.safetensors --source PICTURES --features THEIR_STORE
"""

import sys
from pathlib import Path

import numpy as np

from mtyolo.features.writing import save_features

data, arrays, store = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
split = sys.argv[4] if len(sys.argv) > 4 else "train"
folders = {int(folder.name): folder for folder in sorted(arrays.iterdir())}


def features_of(picture: Path) -> dict[int, np.ndarray]:
    return {stride: np.load(folder / f"{picture.stem}.npy") for stride, folder in folders.items()}


stride, folder = next(iter(folders.items()))
size = stride * np.load(next(folder.glob("*.npy")), mmap_mode="r").shape[-1]  # pixels: side of the letterboxed picture
written = save_features(store, data, features_of, size=size, made_by="my features, version 1", split=split)
print(f"{written.images} pictures written, {written.kept} shards were there: {store}")
