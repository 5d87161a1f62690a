"""Which row of a store belongs to which image, and whether the image is still the one that was read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mtyolo.data.records import ImageRecord
from mtyolo.errors import StoreError
from mtyolo.features.shards import Contents, Row

CHUNK = 1 << 20


class SplitIndex:
    """The rows of one split, in the order in which they are stored."""

    def __init__(self, split: str, contents: Sequence[Contents], *, made_here: bool) -> None:
        self.split = split
        self.made_here = made_here
        """By mtyolo; otherwise another program has to make what is missing."""
        self.rows: list[Row] = [row for content in contents for row in content.rows]
        self.places: list[tuple[int, int]] = [
            (shard, place) for shard, content in enumerate(contents) for place in range(len(content.rows))
        ]
        """Of each row: its shard and its place there."""
        self.unchanged: set[Path] = set()
        """Images that were compared already."""
        self.by_name = {row.name: number for number, row in enumerate(self.rows)}

    def find(self, path: Path) -> int | None:
        """The row of an image: that whose name is the longest end of the image's path."""
        parts = path.parts
        for start in range(len(parts)):
            number = self.by_name.get("/".join(parts[start:]))
            if number is not None:
                return number
        return None

    def match(self, records: Sequence[ImageRecord]) -> list[int]:
        """The row of each record. Raises StoreError naming the first image that is missing or has changed."""
        found = [self.find(record.path) for record in records]
        missing = [record for record, number in zip(records, found, strict=True) if number is None]
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(records)} images of {self.split} are not in the store, first "
                f"{missing[0].path}; {self._remedy('it adds what is missing')}"
            )
        numbers = [number for number in found if number is not None]
        changed = [
            (record, reason)
            for record, number in zip(records, numbers, strict=True)
            if record.path not in self.unchanged and (reason := change(self.rows[number], record))
        ]
        if changed:
            record, reason = changed[0]
            raise StoreError(
                f"{len(changed)} of {len(records)} images of {self.split} changed after their features were made, "
                f"first {record.path} ({reason}); {self._remedy('it renews only their shards')}"
            )
        self.unchanged.update(record.path for record in records)
        return numbers

    def _remedy(self, effect: str) -> str:
        if self.made_here:
            return f"run mtyolo extract again, {effect}"
        return "write these features again with the program that made them"


def change(row: Row, record: ImageRecord, *, thorough: bool = False) -> str | None:
    """How an image differs from the one that was read; None if it is the same.

    Length and time of the file settle most cases; where the time differs, or with `thorough`, its content decides.
    A file that is not there is no change: features are there so that images need not be.
    """
    if (row.height, row.width) != (record.height, record.width):
        return f"it is {record.width}x{record.height}, was {row.width}x{row.height}"
    try:
        status = record.path.stat()
    except FileNotFoundError:
        return None
    if row.length is not None and row.length != status.st_size:
        return f"it has {status.st_size} bytes, had {row.length}"
    if row.sha256 is None or (row.modified == status.st_mtime_ns and not thorough):
        return None
    return None if sha256_of(record.path) == row.sha256 else "its content differs"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def store_names(records: Sequence[ImageRecord]) -> list[str]:
    """What images are called in a store: their paths below the folder that all have in common."""
    folder = os.path.commonpath([record.path.parent for record in records])
    return [record.path.relative_to(folder).as_posix() for record in records]
