"""How features are to be made and kept, and what the store will say of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from mtyolo.data.records import Split
from mtyolo.errors import ConfigError, StoreError
from mtyolo.extractors.base import Extractor
from mtyolo.extractors.pretrained import identity_of
from mtyolo.features.codec import bytes_per_image
from mtyolo.features.manifest import MANIFEST, Dtype, Manifest, read_manifest
from mtyolo.features.shards import shards_in

SHARD_IMAGES = 64
"""Most images in a shard: what an interruption can cost each process."""
SHARD_BYTES = 128 << 20
"""A shard holds fewer images where they would take more than this."""
PACKAGES = ("mtyolo", "torch", "timm", "safetensors")


@dataclass(frozen=True)
class ExtractOptions:
    """How features are made and kept; see `mtyolo extract --help`."""

    dtype: Dtype = "fp16"
    views: int = 1
    batch: int = 16
    device: str | torch.device = "cpu"
    workers: int = 2
    """Threads that read images."""
    source: Mapping[str, str] = field(default_factory=dict)
    """What the model file says about the extractor; `standin.source_of`."""
    share: tuple[int, int] = (0, 1)
    """This process and how many there are: shards are dealt to them by number."""


def plan_manifest(extractor: Extractor, splits: Sequence[Split], size: int, options: ExtractOptions) -> Manifest:
    """What a new store of these features would say about itself. Raises ConfigError for a size that does not fit."""
    levels = {level.stride: level.channels for level in extractor.levels}
    check_size(size, levels)
    empty = next((split.name for split in splits if not len(split)), None)
    if empty:
        raise ConfigError(f"split {empty}: has no images to extract")
    manifest = Manifest(
        format="mtyolo-features/1",
        extractor={"name": type(extractor).__name__} | identity_of(extractor),
        size=size,
        levels=levels,
        dtype=options.dtype,
        views=options.views,
        images_per_shard=1,
        splits={split.name: len(split) for split in splits},
        source=dict(options.source),
        versions={package: _version(package) for package in PACKAGES},
    )
    return with_shards(manifest)


def check_size(size: int, strides: Iterable[int]) -> None:
    """Raises ConfigError for a size that does not fit."""
    coarsest = max(strides)
    if not isinstance(size, int):
        raise ConfigError(f"image size {size!r}: expected whole pixels, a multiple of the largest stride, {coarsest}")
    if size <= 0 or size % coarsest:
        fitting = max(1, round(size / coarsest)) * coarsest
        raise ConfigError(f"image size {size}: expected a multiple of the largest stride, {coarsest}; use {fitting}")


def with_shards(manifest: Manifest) -> Manifest:
    """The same with as many images a shard as suit their bytes."""
    images = max(1, min(SHARD_IMAGES, SHARD_BYTES // bytes_per_image(manifest)))
    return manifest.model_copy(update={"images_per_shard": images})


def joined(directory: Path, manifest: Manifest) -> Manifest:
    """The manifest to write: the planned one with what the folder's has. Raises StoreError for other features there.

    A manifest alone, which a program left that failed at its first batch, keeps nobody out.
    """
    if not (directory / MANIFEST).exists():
        return manifest
    there = read_manifest(directory)
    difference = there.difference(manifest)
    if difference and there.made_here == manifest.made_here and not any(shards_in(directory)):
        return manifest
    if difference:
        fitting = there.options_beside(manifest) if manifest.made_here else ""
        give = f"give {fitting} to go on with it, or" if fitting else "give"
        raise StoreError(f"{directory}: holds other features ({difference}); {give} another folder, or remove this one")
    return there.model_copy(update={"splits": there.splits | manifest.splits})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
