"""Features that any program has for pictures, written as a store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.data.sources import Data
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, MtyoloError, StoreError
from mtyolo.extractors.base import GIVEN
from mtyolo.features.codec import encode
from mtyolo.features.filling import Filling, Made, Written, begin, fill
from mtyolo.features.index import store_names
from mtyolo.features.manifest import Dtype, Manifest, write_manifest
from mtyolo.features.planning import check_size, with_shards
from mtyolo.features.views import row_of
from mtyolo.files import locked

logger = logging.getLogger(__name__)

Asked = Callable[[Path], dict[int, Tensor]]
"""From a picture to stride -> [channels, size / stride, size / stride], checked as far as a picture alone tells."""


def save_features(
    folder: Path | str,
    data: Data,
    features: Callable[[Path], Mapping[int, Any]],
    *,
    size: int,
    made_by: str | Mapping[str, str],
    split: str = "train",
    dtype: Dtype = "fp16",
    report: Callable[[int], None] = lambda images: None,
) -> Written:
    """Write a store, or one more split of it, that training, validation and prediction read in place of pictures; the
    model file says `extractor: {name: features, levels: {stride: channels}}`.

    data: a data file or a folder of pictures, whose split is called train. features: from a picture's path to its
    levels, stride -> [channels, size / stride, size / stride], tensors or arrays, of the picture fitted into a square
    of `size` pixels (docs/features.md: letterbox). It is asked for the first picture in any case, as that tells strides
    and channels, and else for those that are not there yet, in the order of the data.
    made_by: what tells these features from others of the same shapes: a name with its version, or such texts by key.
    A call that was stopped goes on where it was, shard by shard, when it is made again.
    report: called with the number of pictures done since the last call.
    Raises StoreError for features of other shapes, or not finite, where the folder holds other features, and where the
    split holds other pictures; ConfigError and DataError for sizes and data that can not be used; MtyoloError while
    another process writes there.
    """
    place, pictures = Path(folder), load_split(data, split)
    if wrong := pictures.problems.summary():
        logger.warning("%s", wrong)
    ask = lru_cache(maxsize=1)(partial(_ask, features))  # so that the first picture is asked for once
    with locked(place):
        plan = _plan(made_by, pictures, ask, size, dtype)
        work = begin(place, plan, [pictures], {split: store_names(pictures.records)})[0]
        write_manifest(place, work.manifest)
        return fill(work, partial(_made, work, ask, report), report)


def _plan(made_by: str | Mapping[str, str], split: Split, ask: Asked, size: int, dtype: Dtype) -> Manifest:
    identity = {"name": made_by} if isinstance(made_by, str) else made_by
    if not isinstance(identity, Mapping) or identity.get("name", GIVEN) == GIVEN:
        raise ConfigError(f"made_by: {made_by!r}: say by a name what made these features; {GIVEN!r} is any")
    picture = split.records[0].path
    levels = ask(picture)
    odd = [stride for stride in levels if stride < 1 or max(levels) % stride]
    if odd:
        raise StoreError(f"{picture}: features at stride {odd[0]}, which does not divide the largest, {max(levels)}")
    check_size(size, levels)
    for stride, level in levels.items():
        _check_side(picture, stride, level, size)
    one = Manifest(
        format="mtyolo-features/1",
        extractor=dict(identity),
        size=size,
        levels={stride: levels[stride].shape[0] for stride in sorted(levels)},
        dtype=dtype,
        images_per_shard=1,
        splits={split.name: len(split)},
    )
    return with_shards(one)


def _made(work: Filling, ask: Asked, report: Callable[[int], None], numbers: Sequence[int]) -> Generator[Made]:
    for number in numbers:
        rows, parts = [], []
        for image in work.span(number):
            record = work.split.records[image]
            parts.append(_encoded(work.manifest, record.path, ask(record.path)))
            rows.append(row_of(record, work.names[image]))
            report(1)
        yield Made(rows, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _ask(features: Callable[[Path], Mapping[int, Any]], picture: Path) -> dict[int, Tensor]:
    try:
        found = features(picture)
    except MtyoloError:
        raise
    except Exception as error:
        raise StoreError(f"{picture}: its features can not be had: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping) or not found or not all(isinstance(stride, int) for stride in found):
        given = dict(found).keys() if isinstance(found, Mapping) else type(found).__name__
        raise StoreError(f"{picture}: its features are not {{stride: [channels, h, w]}}, but {given}")
    return {stride: _tensor(picture, stride, level) for stride, level in found.items()}


def _tensor(picture: Path, stride: int, level: Any) -> Tensor:
    try:
        if isinstance(level, np.ndarray):  # copied, as torch does not take every order of bytes and values
            level = np.array(level, dtype=level.dtype.newbyteorder("="), order="C")
        tensor = torch.as_tensor(level)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{picture}: features at stride {stride} are no tensor: {error}") from None
    if tensor.is_complex() or tensor.ndim != 3 or not len(tensor):
        raise StoreError(
            f"{picture}: features at stride {stride} are {tensor.dtype} of {list(tensor.shape)}, not real values of "
            "[channels, h, w]"
        )
    return tensor


def _check_side(picture: Path, stride: int, level: Tensor, size: int) -> None:
    side, shape = size // stride, tuple(level.shape)
    if shape[1:] != (side, side):
        raise StoreError(
            f"{picture}: features at stride {stride} are {list(shape)}, not [channels, {side}, {side}] as for {size} "
            f"pixels{'; channels come last there: give them first' * (shape[:2] == (side, side))}"
        )


def _encoded(manifest: Manifest, picture: Path, levels: dict[int, Tensor]) -> dict[str, Tensor]:
    if levels.keys() != manifest.levels.keys():
        raise StoreError(f"{picture}: has features at strides {sorted(levels)}, others at {list(manifest.levels)}")
    for stride, channels in manifest.levels.items():
        _check_side(picture, stride, levels[stride], manifest.size)
        if len(levels[stride]) != channels:
            raise StoreError(f"{picture}: {len(levels[stride])} channels at stride {stride}, the store has {channels}")
    try:
        return encode({stride: levels[stride][None] for stride in manifest.levels}, manifest.dtype)
    except StoreError as error:
        raise StoreError(f"{picture}: {error}") from None


__all__ = ["save_features"]
