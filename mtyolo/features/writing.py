"""Features that any program has for pictures, written as a store."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mtyolo.data.records import ImageRecord, Split
from mtyolo.data.sources import Data
from mtyolo.data.split import load_split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import GIVEN
from mtyolo.features.codec import encode
from mtyolo.features.filling import Filling, Made, Written, fill
from mtyolo.features.index import store_names
from mtyolo.features.manifest import Dtype, Manifest, write_manifest
from mtyolo.features.planning import check_size, joined, with_shards
from mtyolo.features.views import row_of

Levels = Mapping[int, Tensor | NDArray[Any]]
"""Stride -> [channels, size / stride, size / stride] of one picture."""


def save_features(
    folder: Path | str,
    data: Data,
    features: Callable[[Path], Levels],
    *,
    size: int,
    made_by: str | Mapping[str, str],
    split: str = "train",
    dtype: Dtype = "fp16",
    report: Callable[[int], None] = lambda images: None,
) -> Written:
    """Write a store, or one more split of it, that training, validation and prediction read in place of pictures; the
    model file says `extractor: {name: features, levels: {stride: channels}}`.

    data: a data file or a folder of pictures. features: asked for each picture of the split by its path; the levels of
    the picture fitted into a square of `size` pixels (docs/features.md: letterbox), channels first, tensors or arrays.
    made_by: what tells these features from others of the same shapes: a name with its version, or such texts by key.
    A call that was stopped goes on where it was, shard by shard, when it is made again.
    report: called with the number of pictures done since the last call.
    Raises StoreError for features of other shapes, or not finite, and where the folder holds other features;
    ConfigError and DataError for sizes and data that can not be used.
    """
    place, pictures = Path(folder), load_split(data, split)
    record = pictures.records[0]
    identity = {"name": made_by} if isinstance(made_by, str) else dict(made_by)
    manifest = joined(place, _manifest(identity, record, features(record.path), size, dtype, pictures))
    write_manifest(place, manifest)
    work = Filling(place, manifest, pictures, store_names(pictures.records))
    return fill(work, partial(_made, work, features, report), report)


def _manifest(
    identity: dict[str, str], record: ImageRecord, first: Levels, size: int, dtype: Dtype, split: Split
) -> Manifest:
    if identity.get("name", GIVEN) == GIVEN:
        raise StoreError(f"made_by: {identity}: say by a name what made these features; {GIVEN!r} is any")
    if not first:
        raise StoreError(f"{record.path}: its features have no level; give {{stride: [C, h, w]}}")
    odd = [stride for stride in first if stride < 1 or max(first) % stride]
    if odd:
        raise StoreError(f"{record.path}: features at stride {odd[0]}, which does not divide the largest, {max(first)}")
    check_size(size, first)
    levels = {stride: _checked(record, stride, level, size).shape[0] for stride, level in sorted(first.items())}
    one = Manifest(
        format="mtyolo-features/1",
        extractor=identity,
        size=size,
        levels=levels,
        dtype=dtype,
        images_per_shard=1,
        splits={split.name: len(split)},
    )
    return with_shards(one)


def _made(
    work: Filling, features: Callable[[Path], Levels], report: Callable[[int], None], numbers: Sequence[int]
) -> Generator[Made]:
    for number in numbers:
        rows, parts = [], []
        for image in work.span(number):
            record = work.split.records[image]
            parts.append(_encoded(work.manifest, record, features(record.path)))
            rows.append(row_of(record, work.names[image]))
            report(1)
        yield Made(rows, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _encoded(manifest: Manifest, record: ImageRecord, levels: Levels) -> dict[str, Tensor]:
    if levels.keys() != manifest.levels.keys():
        raise StoreError(f"{record.path}: has features at strides {sorted(levels)}, others at {list(manifest.levels)}")
    checked = {stride: _checked(record, stride, levels[stride], manifest.size) for stride in manifest.levels}
    for stride, level in checked.items():
        if level.shape[0] != manifest.levels[stride]:
            wanted = f"the store has {manifest.levels[stride]}"
            raise StoreError(f"{record.path}: {level.shape[0]} channels at stride {stride}, {wanted}")
    try:
        return encode({stride: level[None] for stride, level in checked.items()}, manifest.dtype)
    except StoreError as error:
        raise StoreError(f"{record.path}: {error}") from None


def _checked(record: ImageRecord, stride: int, level: Tensor | NDArray[Any], size: int) -> Tensor:
    tensor, side = torch.as_tensor(level), size // stride
    if tensor.ndim != 3 or tensor.shape[1:] != (side, side):
        last = tensor.ndim == 3 and tensor.shape[:2] == (side, side)
        raise StoreError(
            f"{record.path}: features at stride {stride} are {list(tensor.shape)}, not [channels, {side}, {side}] as "
            f"for {size} pixels{'; channels come last there: give them first' * last}"
        )
    return tensor


__all__ = ["save_features"]
