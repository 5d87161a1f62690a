"""What a store would cost and bring, from a few images that are timed: `mtyolo extract --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mtyolo.data.records import Split
from mtyolo.extractors.base import Extractor
from mtyolo.features.codec import bytes_per_image, decode_into, encode
from mtyolo.features.index import store_names
from mtyolo.features.manifest import Manifest
from mtyolo.features.planning import ExtractOptions, plan_manifest
from mtyolo.features.replaced import ReplacedLayers, target_options
from mtyolo.features.views import draw
from mtyolo.features.writer import compute
from mtyolo.structures import Pyramid

SAMPLE = 16
"""Images that are timed."""
REPEATS = 3
"""Each time is the best of so many: the machine may be busy with other things."""


class Estimate(NamedTuple):
    """Seconds are those of one image on this machine, in one process."""

    images: int
    views: int
    bytes_per_image: int
    drawing: float
    """Reading and decoding an image and drawing its views, in one thread, for each pass."""
    extracting: float
    """All views of an image through the extractor."""
    reading: float
    """One view from memory into a batch."""
    learning: float
    """A training step's forward and backward pass from features, without the extractor."""

    @property
    def bytes(self) -> int:
        return self.images * self.bytes_per_image

    def seconds(self, processes: int = 1, workers: int = 1) -> float:
        """Of the whole extraction, reading images in threads while the extractor works."""
        return self.images * max(self.extracting, self.drawing / max(1, workers)) / processes

    @property
    def gain(self) -> float:
        """An epoch online over an epoch from the store, both after their first, when decoded images are at hand."""
        return (self.extracting / self.views + self.learning) / (self.reading + self.learning)

    @property
    def epochs_to_pay(self) -> float:
        """Epochs after which making the store has saved time."""
        saved = self.extracting / self.views - self.reading
        return (self.extracting + self.drawing) / saved if saved > 0 else float("inf")


def estimate(
    model: Any,
    splits: Sequence[Split],
    size: int,
    options: ExtractOptions,
    replaced: ReplacedLayers | None = None,
) -> Estimate:
    """Time a few images of the first split. The model is left in the mode it came in, its gradients empty.

    model: with an extractor; its weights do not matter. replaced: their outputs are to be stored too, in a pass of
    their own over the images.
    """
    model.to(options.device)
    makers: list[tuple[Extractor, ExtractOptions]] = [(model.extractor, options)]
    if replaced is not None:
        replaced.to(options.device)
        makers.append((replaced, target_options(options)))
    manifests = [plan_manifest(maker, splits, size, own) for maker, own in makers]
    split = splits[0]
    records = split.records[:SAMPLE]
    names = store_names(split.records)
    started = time.perf_counter()
    drawn = [draw(record, name, size, options.views, mirror=True) for record, name in zip(records, names, strict=False)]
    drawing = (time.perf_counter() - started) / len(records)
    images = torch.from_numpy(np.concatenate([item.images for item in drawn]))[: options.batch]
    pyramids = [compute(maker, images, options.device) for maker, _ in makers]
    extracting = _best(lambda: [compute(maker, images, options.device) for maker, _ in makers]) / len(images)
    return Estimate(
        images=sum(len(split) for split in splits),
        views=options.views,
        bytes_per_image=sum(bytes_per_image(manifest) for manifest in manifests),
        drawing=drawing * len(makers),
        extracting=extracting * options.views,
        reading=sum(map(_reading, manifests, pyramids)) / len(images),
        learning=_learning(model, pyramids[0]) / len(images),
    )


def _reading(manifest: Manifest, pyramid: Pyramid) -> float:
    stored = encode(pyramid, manifest.dtype)
    targets = {stride: torch.empty(level.shape) for stride, level in pyramid.items()}
    everything = slice(None)

    def read() -> None:
        for stride, target in targets.items():
            for row in range(len(target)):
                decode_into(target[row], stored, stride, row, everything, everything)

    return _best(read)


def _learning(model: Any, pyramid: Pyramid) -> float:
    training = model.training
    features = {stride: level.clone() for stride, level in pyramid.items()}  # out of inference mode
    model.train()

    def step() -> None:
        outputs = model(pyramid=features)
        total = sum(level.float().square().mean() for level in outputs.fused.values())
        total = total + sum(level.float().square().mean() for level in outputs.detect)
        total.backward()

    seconds = _best(step)
    model.zero_grad(set_to_none=True)
    model.train(training)
    return seconds


def _best(function: Callable[[], object]) -> float:
    function()  # the first call allocates
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
