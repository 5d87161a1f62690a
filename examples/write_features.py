"""Features made by any program, written as a store that `mtyolo train --features` reads. See docs/features.md.

python examples/write_features.py IMAGE_FOLDER STORE_FOLDER [SPLIT]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

SIZE, LEVELS = 320, {8: 3, 16: 3, 32: 3}  # pixels; stride -> channels
images, store, split = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "train"

rows, features = [], {stride: [] for stride in LEVELS}
for path in sorted(images.glob("*.jpg")):
    with Image.open(path) as image:
        rows.append({"name": path.name, "width": image.width, "height": image.height})
    for stride, channels in LEVELS.items():  # your features go here: of the image letterboxed to SIZE x SIZE
        features[stride].append(torch.zeros(channels, SIZE // stride, SIZE // stride, dtype=torch.float16))

tensors = {str(stride): torch.stack(level) for stride, level in features.items()}
unsigned = save(tensors, {"mtyolo": json.dumps({"checksum": "0" * 64, "rows": rows})})
checksum = hashlib.sha256(unsigned).hexdigest()  # of the file with the checksum's own digits as zeros
(store / split).mkdir(parents=True, exist_ok=True)
(store / split / "00000.safetensors").write_bytes(unsigned.replace(b"0" * 64, checksum.encode(), 1))
path = store / "manifest.json"
splits = json.loads(path.read_text())["splits"] if path.exists() else {}  # others stay
splits[split] = len(rows)
manifest = {"extractor": {"name": "mine"}, "size": SIZE, "levels": LEVELS, "dtype": "fp16"}
manifest |= {"format": "mtyolo-features/1", "images_per_shard": max(splits.values()), "splits": splits}
path.write_text(json.dumps(manifest))
