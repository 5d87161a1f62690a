"""Where features are while they are used: on disk, in memory, or on the GPU. A shard is checked when first used."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from mtyolo.data.cache import free_memory
from mtyolo.errors import ConfigError, StoreError
from mtyolo.features.codec import bytes_per_image, expected_tensors
from mtyolo.features.manifest import Manifest, repair_of
from mtyolo.features.shards import Contents, Stored, check_shard, load_shard, map_shard, shard_path

Residency = Literal["auto", "stream", "ram", "gpu"]

MEMORY_SHARE = 0.5
"""Of the free memory, or GPU memory, that `auto` takes at most."""


class Shelf:
    """The shards of one split. Tensors come from where `residency` says, and are checked on the way, once."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        split: str,
        contents: list[Contents],
        residency: Residency,
        device: torch.device,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.split = split
        self.contents = contents
        self.residency = choose(residency, bytes_per_image(manifest) * manifest.splits[split], device)
        self.device = device if self.residency == "gpu" else torch.device("cpu")
        """Where the shards' tensors are."""
        self.shards: dict[int, Stored] = {}

    def __getitem__(self, number: int) -> Stored:
        """Raises StoreError for a shard whose bytes have changed, or do not fit the manifest."""
        if number not in self.shards:
            self.shards[number] = self._open(number)
        return self.shards[number]

    def _open(self, number: int) -> Stored:
        path = shard_path(self.directory, self.split, number)
        if self.residency == "stream":
            # The check reads the whole file; what is used next comes from the system's cache.
            check_shard(path)
            stored = map_shard(path)
        else:
            stored = load_shard(path, self.device)
        check_tensors(path, self.manifest, stored, len(self.contents[number].rows))
        return stored


def check_tensors(path: Path, manifest: Manifest, stored: Stored, rows: int) -> None:
    """Raises StoreError where a shard's tensors are not those that the manifest promises."""
    repair = repair_of(path.parent.parent)
    for name, (dtype, shape) in expected_tensors(manifest, rows).items():
        if name not in stored:
            raise StoreError(f"{path}: has no tensor {name!r}, which the manifest promises; {repair}")
        found = stored[name]
        if found.dtype != dtype or tuple(found.shape) != shape:
            last = len(shape) == 4 and tuple(found.shape) == (shape[0], *shape[2:], shape[1])
            raise StoreError(
                f"{path}: tensor {name} is {found.dtype} {list(found.shape)}, the manifest says {dtype} {list(shape)}"
                f"{'; channels come last there: store features.permute(0, 3, 1, 2)' * last}; {repair}"
            )


def choose(residency: Residency, needed: int, device: torch.device) -> Residency:
    """What `auto` means for so many bytes that a device will use. Raises ConfigError for a GPU that is not there."""
    gpu = device.type == "cuda"
    if residency == "gpu" and not gpu:
        raise ConfigError(f"residency gpu: the features are used on {device}; use auto, ram or stream")
    if residency != "auto":
        return residency
    if gpu and needed < torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE:
        return "gpu"
    return "ram" if needed < free_memory() * MEMORY_SHARE else "stream"
