"""Run an extractor once over a data set and write what it gives; stopped at any moment, it goes on where it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import Extractor, features_of
from mtyolo.features.codec import encode
from mtyolo.features.index import change, store_names
from mtyolo.features.manifest import Manifest, write_manifest
from mtyolo.features.planning import ExtractOptions, agreed_manifest
from mtyolo.features.shards import Contents, Stored, check_shard, shard_path, write_shard
from mtyolo.features.views import Drawn, draw
from mtyolo.memory import kept_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class Written(NamedTuple):
    """What an extraction did, in this process."""

    images: int
    shards: int
    kept: int
    """Shards that were there already, whole and right."""


class _Work(NamedTuple):
    """One split on its way into a store."""

    directory: Path
    manifest: Manifest
    split: Split
    names: list[str]

    def span(self, number: int) -> range:
        """The images of a shard."""
        length = self.manifest.images_per_shard
        return range(number * length, min((number + 1) * length, len(self.split)))


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
    directory = Path(directory)
    manifest = agreed_manifest(extractor, splits, directory, size, options)
    if options.share[0] == 0:
        write_manifest(directory, manifest)
    extractor.to(options.device)
    done = Written(0, 0, 0)
    for split in splits:
        called = store_names(split.records) if names is None else list(names[split.name])
        work = _Work(directory, manifest, split, called)
        written = _extract_split(extractor, work, options, report)
        done = Written(*(one + other for one, other in zip(done, written, strict=True)))
    return done


def _extract_split(
    extractor: Extractor, work: _Work, options: ExtractOptions, report: Callable[[int], None]
) -> Written:
    index, processes = options.share
    numbers = range(index, work.manifest.shards(work.split.name), processes)
    todo = []
    for number in numbers:
        if _is_right(work, number):
            report(len(work.span(number)))
        else:
            todo.append(number)
    images = sum(len(work.span(number)) for number in todo)
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        drawn = _ahead(
            pool, _drawer(work), (image for number in todo for image in work.span(number)), options.batch * 2
        )
        for number in todo:
            _write(extractor, work, number, drawn, options, report)
    if index == 0:
        _remove_surplus(work)
    return Written(images, len(todo), len(numbers) - len(todo))


def _is_right(work: _Work, number: int) -> bool:
    """Is a shard there, undamaged, of this store, and of these very images?"""
    try:
        contents = check_shard(shard_path(work.directory, work.split.name, number))
    except StoreError:
        return False
    span = work.span(number)
    if contents.fingerprint != work.manifest.fingerprint or [row.name for row in contents.rows] != [
        work.names[image] for image in span
    ]:
        return False
    return not any(change(row, work.split.records[image]) for row, image in zip(contents.rows, span, strict=True))


def _drawer(work: _Work) -> Callable[[int], Drawn]:
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


def _write(
    extractor: Extractor,
    work: _Work,
    number: int,
    drawn: Iterator[Drawn],
    options: ExtractOptions,
    report: Callable[[int], None],
) -> None:
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
    tensors: Stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    _check_shapes(work.manifest, tensors)
    contents = Contents(fingerprint=work.manifest.fingerprint, rows=rows)
    write_shard(shard_path(work.directory, work.split.name, number), tensors, contents)


@torch.inference_mode()
def compute(extractor: Extractor, images: Tensor, device: str | torch.device) -> dict[int, Tensor]:
    """images: [n, H, W, 3] uint8 -> the pyramid, computed as the model does it for images."""
    pixels = images.to(device).permute(0, 3, 1, 2).float() / 255
    return dict(features_of(extractor.eval(), pixels))


def _check_shapes(manifest: Manifest, tensors: Stored) -> None:
    for stride in manifest.levels:
        found, expected = tuple(tensors[str(stride)].shape[1:]), manifest.shape(stride)
        if found != expected:
            raise StoreError(f"stride {stride}: the extractor gave features of {found}, expected {expected}")


def _remove_surplus(work: _Work) -> None:
    """Shards beyond the last: the data set was larger once."""
    folder = work.directory / work.split.name
    keep = {shard_path(work.directory, work.split.name, n) for n in range(work.manifest.shards(work.split.name))}
    for path in set(folder.glob("*.safetensors")) - keep:
        path.unlink()


__all__ = ["Written", "compute", "extract"]
