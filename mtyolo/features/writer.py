"""Run an extractor once over a data set and write what it gives; stopped at any moment, it goes on where it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.extractors.base import Extractor, features_of
from mtyolo.features.codec import encode
from mtyolo.features.filling import Filling, Made, Written, begin, fill
from mtyolo.features.index import store_names
from mtyolo.features.manifest import write_manifest
from mtyolo.features.planning import ExtractOptions, plan_manifest
from mtyolo.features.views import Drawn, draw
from mtyolo.files import locked
from mtyolo.memory import kept_memory

LOCK_SECONDS = 10.0
"""That the manifest may take which another extraction is just writing."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@kept_memory()
def extract(
    extractor: Extractor,
    splits: Sequence[Split],
    directory: Path | str,
    size: int,
    options: ExtractOptions | None = None,
    report: Callable[[int], None] = lambda images: None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Written:
    """Write the features of every image of `splits`. Shards that are there, whole and right, are kept.

    extractor: has `levels` and `identity`; images [B, 3, size, size] in 0..1 -> pyramid. It is moved to the device and
    set to evaluation mode.
    report: called with the number of images done since the last call.
    names: split -> what its images are called in the store; by default their paths below a common folder.
    Raises StoreError where the folder holds other features, DataError or ConfigError for wrong images or sizes.
    """
    options = options or ExtractOptions()
    directory, plan = Path(directory), plan_manifest(extractor, splits, size, options)
    called = names or {split.name: store_names(split.records) for split in splits}
    with locked(directory, wait=LOCK_SECONDS):
        works = begin(directory, plan, splits, called)
        if options.share[0] == 0:
            write_manifest(directory, works[0].manifest)
    extractor.to(options.device)
    done = Written(0, 0, 0)
    for work in works:
        make = partial(_extracted, extractor, work, options, report)
        written = fill(work, make, report, options.share)
        done = Written(*(one + other for one, other in zip(done, written, strict=True)))
    return done


def _extracted(
    extractor: Extractor, work: Filling, options: ExtractOptions, report: Callable[[int], None], numbers: Sequence[int]
) -> Generator[Made]:
    """The shards of these numbers; images are read ahead, beyond the end of a shard."""
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        images = (image for number in numbers for image in work.span(number))
        drawn = _ahead(pool, _drawer(work), images, options.batch * 2)
        for number in numbers:
            yield _shard(extractor, work, number, drawn, options, report)


def _drawer(work: Filling) -> Callable[[int], Drawn]:
    mirror = work.split.may_mirror

    def drawer(image: int) -> Drawn:
        record, name = work.split.records[image], work.names[image]
        return draw(record, name, work.manifest.size, work.manifest.views, mirror=mirror)

    return drawer


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Results in order, computed up to `depth` items ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _shard(
    extractor: Extractor,
    work: Filling,
    number: int,
    drawn: Iterator[Drawn],
    options: ExtractOptions,
    report: Callable[[int], None],
) -> Made:
    span, views = work.span(number), work.manifest.views
    at_once = max(1, options.batch // views)
    rows, parts = [], []
    # Batches begin anew in each shard: then its bytes do not depend on what was done before it.
    for start in range(0, len(span), at_once):
        batch = [next(drawn) for _ in span[start : start + at_once]]
        rows += [item.row for item in batch]
        images = torch.from_numpy(np.concatenate([item.images for item in batch]))
        parts.append(encode(compute(extractor, images, options.device), options.dtype))
        report(len(batch))
    return Made(rows, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@torch.inference_mode()
def compute(extractor: Extractor, images: Tensor, device: str | torch.device) -> dict[int, Tensor]:
    """images: [n, H, W, 3] uint8 -> the pyramid, computed as the model does it for images."""
    pixels = images.to(device).permute(0, 3, 1, 2).float() / 255
    return dict(features_of(extractor.eval(), pixels))


__all__ = ["Written", "compute", "extract"]
