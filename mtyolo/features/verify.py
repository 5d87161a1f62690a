"""What is in a store, and whether all of it is still as it was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.features.codec import expected_tensors
from mtyolo.features.index import change
from mtyolo.features.manifest import MANIFEST, REPLACED, Manifest, read_manifest, repair_of
from mtyolo.features.reader import FeatureStore
from mtyolo.features.residency import check_tensors
from mtyolo.features.shards import Stored, check_shard, map_shard, shard_path


class SplitInfo(NamedTuple):
    """One split of a store."""

    name: str
    images: int
    shards: int
    present: int
    """Shards that are there; whether they are whole is for `verify` to say."""
    bytes: int


class StoreInfo(NamedTuple):
    """What `mtyolo features info` prints."""

    directory: Path
    manifest: Manifest
    splits: tuple[SplitInfo, ...]
    replaced: StoreInfo | None = None
    """The store of what the replaced layers gave, where there is one."""

    @property
    def shards(self) -> int:
        return sum(split.shards for split in self.splits) + (self.replaced.shards if self.replaced else 0)


def info(directory: Path | str) -> StoreInfo:
    """Read from the manifest and the folder alone. Raises StoreError where there is no store."""
    directory, manifest = Path(directory), read_manifest(directory)
    splits = []
    for name, images in manifest.splits.items():
        shards = manifest.shards(name)
        paths = [shard_path(directory, name, number) for number in range(shards)]
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        splits.append(SplitInfo(name, images, shards, len(sizes), sum(sizes)))
    inside = directory / REPLACED
    replaced = info(inside) if (inside / MANIFEST).is_file() else None
    return StoreInfo(directory, manifest, tuple(splits), replaced)


def verify(
    directory: Path | str,
    splits: Sequence[Split] = (),
    report: Callable[[int], None] = lambda shards: None,
) -> list[str]:
    """Read every byte of a store, and compare it with the manifest. Returns a sentence for each thing that is wrong;
    none if all is well.

    splits: data to compare with: the content of every image file against what was read. report: called after each
    shard. Raises StoreError where there is no store.
    """
    directory, manifest = Path(directory), read_manifest(directory)
    wrong: dict[str, list[str]] = {name: [] for name in manifest.splits}
    images = dict.fromkeys(manifest.splits, 0)
    for name, found in wrong.items():
        for number in range(manifest.shards(name)):
            try:
                images[name] += _check(shard_path(directory, name, number), manifest)
            except StoreError as error:
                found.append(str(error))
            report(1)
        if not found and images[name] != manifest.splits[name]:
            count = f"{images[name]} images, the manifest says {manifest.splits[name]}"
            found.append(f"{directory}: the shards of {name} have {count}; {repair_of(directory)}")
    problems = [problem for found in wrong.values() for problem in found]
    for split in splits:
        # Where shards are damaged their images can not be looked up: first things first.
        if not wrong.get(split.name):
            problems += _images(FeatureStore.open(directory, "stream"), split)
    inside = directory / REPLACED
    return problems + (verify(inside, splits, report) if (inside / MANIFEST).is_file() else [])


def _check(path: Path, manifest: Manifest) -> int:
    """How many images a shard has. Raises StoreError for the first thing that is wrong with it."""
    contents = check_shard(path)
    if contents.fingerprint not in (None, manifest.fingerprint):
        raise StoreError(f"{path}: belongs to another store; {repair_of(path.parent.parent)}")
    stored = map_shard(path)
    check_tensors(path, manifest, stored, len(contents.rows))
    wrong = [row.name for number, row in enumerate(contents.rows) if not _is_finite(stored, manifest, number)]
    if wrong:
        raise StoreError(
            f"{path}: the features of {len(wrong)} of {len(contents.rows)} images are not finite, first of {wrong[0]}; "
            f"{repair_of(path.parent.parent)}"
        )
    return len(contents.rows)


def _is_finite(stored: Stored, manifest: Manifest, row: int) -> bool:
    """All views of one image of a shard. Image by image, as other programs may write shards of any size."""
    views = slice(row * manifest.views, (row + 1) * manifest.views)
    return all(bool(stored[name][views].isfinite().all()) for name in expected_tensors(manifest, 1))


def _images(store: FeatureStore, split: Split) -> list[str]:
    try:
        index = store.index(split.name)
    except StoreError as error:
        return [str(error)]
    problems = []
    for record in split.records:
        number = index.find(record.path)
        reason = "is not in the store" if number is None else change(index.rows[number], record, thorough=True)
        if reason:
            problems.append(f"{record.path}: {reason}; {repair_of(store.directory)}")
    return problems
