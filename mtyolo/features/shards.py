"""One shard: a safetensors file with the features of some images, which carries its own table of contents and checksum.

The file's metadata has one key, `mtyolo`, holding a JSON text (one key, because safetensors writes several in any
order). Its `checksum` is the SHA-256 of the whole file, taken with the checksum's own digits as zeros.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mtyolo.config.strict import Positive, Strict
from mtyolo.errors import StoreError
from mtyolo.features.manifest import repair_of
from mtyolo.files import write_whole

METADATA_KEY = "mtyolo"
NO_CHECKSUM = "0" * 64
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, a little-endian 64-bit number."""
LARGEST_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""

Stored = dict[str, Tensor]
"""Tensors as they lie in a shard, by name."""


class View(Strict):
    """How one view shows its image: pixels of the letterboxed image, counted from its picture's corner, times `scale`,
    plus (left, top), are pixels of the input; then mirrored."""

    scale: float
    left: float
    top: float
    mirrored: bool


class Row(Strict):
    """One image of a shard. Only the name and the size are required from other writers."""

    name: str
    """File name, with as many parent folders as are needed to tell images apart."""
    height: Positive
    width: Positive
    """Pixels of the original image, upright."""
    views: list[View] = Field(default_factory=list)
    """Of the views after the first, which is the plain letterbox."""
    length: int | None = None
    modified: int | None = None
    """Of the image file: its bytes, and its time in nanoseconds, for a quick look whether it is still the same."""
    sha256: str | None = None
    """Of the image file: decides whether it is still the same."""
    usable: bool = True
    """False: the image was damaged; its features are those of a grey square, and its labels are not used."""


class Contents(Strict):
    """A shard's table of contents. Row r of a tensor with V views: image r // V, view r % V."""

    checksum: str = NO_CHECKSUM
    fingerprint: str | None = None
    """The manifest's, where mtyolo wrote the shard."""
    rows: list[Row] = Field(min_length=1)


def shard_path(directory: Path, split: str, number: int) -> Path:
    return directory / split / f"{number:05d}.safetensors"


def shards_in(directory: Path) -> Iterator[Path]:
    """Those of all splits that are there."""
    return directory.glob("*/*.safetensors")


def _repair(path: Path) -> str:
    return repair_of(path.parent.parent)


def write_shard(path: Path, tensors: Mapping[str, Tensor], contents: Contents) -> None:
    """Write a complete shard or none. The same arguments give the same bytes."""
    text = json.dumps(contents.model_copy(update={"checksum": NO_CHECKSUM}).model_dump(exclude_none=True))
    unsigned = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {METADATA_KEY: text})
    checksum = hashlib.sha256(unsigned).hexdigest()
    for left_over in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
        left_over.unlink(missing_ok=True)
    write_whole(path, unsigned.replace(NO_CHECKSUM.encode(), checksum.encode(), 1))


def read_contents(path: Path) -> Contents:
    """The table of contents, and whether the file has the length that its header says. Reads only the header.

    Raises StoreError: missing, cut off, no shard.
    """
    try:
        with path.open("rb") as file:
            header = _header(path, file.read(LENGTH_BYTES), file)
            expected = _expected_length(path, header)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; {_repair(path)}") from None
    except OSError as error:
        raise StoreError(f"{path}: can not be read: {error}") from None
    found = path.stat().st_size
    if found != expected:
        what = "cut off" if found < expected else "too long"
        raise StoreError(f"{path}: {what}: {found} bytes, expected {expected}; {_repair(path)}")
    return _contents(path, header)


def _header(path: Path, start: bytes, file: Any) -> bytes:
    if len(start) < LENGTH_BYTES:
        raise StoreError(f"{path}: cut off: {len(start)} bytes; {_repair(path)}")
    (length,) = struct.unpack("<Q", start)
    header = file.read(length) if length <= LARGEST_HEADER else b""
    if len(header) < length:
        raise StoreError(f"{path}: cut off or damaged: its header should have {length} bytes; {_repair(path)}")
    return header


def _expected_length(path: Path, header: bytes) -> int:
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return LENGTH_BYTES + len(header) + max(entry["data_offsets"][1] for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise StoreError(f"{path}: damaged: its header can not be read; {_repair(path)}") from None


def _contents(path: Path, header: bytes) -> Contents:
    metadata = json.loads(header).get("__metadata__") or {}
    if METADATA_KEY not in metadata:
        raise StoreError(f"{path}: no shard of a feature store: its metadata has no {METADATA_KEY!r}; {_repair(path)}")
    try:
        return Contents.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(key) for key in detail["loc"]) or "its table of contents"
        raise StoreError(f"{path}: damaged or not understood: {place}: {detail['msg']}; {_repair(path)}") from None


def check_bytes(path: Path, whole: bytes | mmap.mmap, checksum: str) -> None:
    """Raises StoreError where a shard's bytes are not those that were written."""
    digest = hashlib.sha256()
    with memoryview(whole) as view:
        (length,) = struct.unpack("<Q", view[:LENGTH_BYTES])
        header = bytes(view[: LENGTH_BYTES + length])
        digest.update(header.replace(checksum.encode(), NO_CHECKSUM.encode(), 1))
        with view[len(header) :] as data:
            digest.update(data)
    if digest.hexdigest() != checksum:
        raise StoreError(f"{path}: its bytes changed after it was written (the checksum differs); {_repair(path)}")


def check_shard(path: Path) -> Contents:
    """Every byte of a shard against its checksum. Raises StoreError."""
    contents = read_contents(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        check_bytes(path, whole, contents.checksum)
    return contents


def map_shard(path: Path) -> Stored:
    """The tensors, as views of the file: nothing is read before it is used."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: damaged: {error}; {_repair(path)}") from None


def load_shard(path: Path, device: torch.device | str) -> Stored:
    """The tensors, in memory, checked on the way."""
    contents = read_contents(path)
    whole = path.read_bytes()
    check_bytes(path, whole, contents.checksum)
    return {name: tensor.to(device) for name, tensor in load(whole).items()}
