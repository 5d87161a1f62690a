"""A training loop of your own, over a feature store: adapters and branches learn, the detector stands still.

python examples/own_loop.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

import mtyolo
from mtyolo.data.shapes import make_shapes
from mtyolo.data.split import load_split
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.standin import source_of
from mtyolo.features.writer import extract

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_loop")
data = make_shapes(folder / "shapes", train=32, val=4, size=128)
train, val = load_split(data, "train"), load_split(data, "val")

torch.manual_seed(0)
model = mtyolo.build("shapes-lite0.yaml", data=data)  # weights="yolov5n.pt": a detector that knows what it looks for
options = ExtractOptions(source=source_of(model.config.extractor))
extract(model.extractor, [train, val], folder / "features", 128, options)  # as mtyolo extract does
store = FeatureStore.open(folder / "features")
loader = make_store_loader(store, train, batch=8, augment=True, shuffle=True, seed=0)

model.train()  # it was built in evaluation mode
frozen = [module for part in ("extractor", "detector") for _, module in model.part(part)]
for module in frozen:  # anew after each model.train(): the statistics of BatchNorm stand still, too
    module.eval().requires_grad_(False)
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.003)

means = []
for epoch in range(8):
    loader.dataset.set_epoch(epoch)  # another order, and other mirrors
    losses = []
    for batch in loader:
        outputs = model(pyramid=batch.pyramid)
        found = mtyolo.losses(model, outputs, batch.targets)  # .tasks: detect, segment, keypoint; .components
        loss = sum(found.tasks.values())  # a mean over images; yours to weigh, or to add to
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))

weights = mtyolo.save_weights(model, folder / "mine.safetensors")  # for mtyolo val, predict, train --weights
print(f"loss {means[0]:.3f} -> {means[-1]:.3f}; the detector stood still; weights: {weights}")
