"""A split of a store, shard by shard: those that are there, whole and right, are kept, the others are written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.features.index import change
from mtyolo.features.manifest import Manifest
from mtyolo.features.planning import joined
from mtyolo.features.shards import Contents, Row, Stored, check_shard, read_contents, shard_path, write_shard
from mtyolo.files import locked


class Written(NamedTuple):
    """What was done, in this process."""

    images: int
    shards: int
    kept: int
    """Shards that were there already, whole and right."""


class Made(NamedTuple):
    """What goes into a shard."""

    rows: Sequence[Row]
    tensors: Stored


class Filling(NamedTuple):
    """One split on its way into a store."""

    directory: Path
    manifest: Manifest
    split: Split
    names: Sequence[str]
    """Of its images, as the store calls them."""

    def span(self, number: int) -> range:
        """The images of a shard."""
        length = self.manifest.images_per_shard
        return range(number * length, min((number + 1) * length, len(self.split)))

    def path(self, number: int) -> Path:
        return shard_path(self.directory, self.split.name, number)

    @property
    def shards(self) -> int:
        return self.manifest.shards(self.split.name)


def begin(
    directory: Path, plan: Manifest, splits: Sequence[Split], names: Mapping[str, Sequence[str]]
) -> list[Filling]:
    """What is to be filled, by the manifest that the folder has or gets. names: split -> what its images are called.

    Raises StoreError where the folder holds other features, or other images alone, which would be lost.
    """
    manifest = joined(directory, plan)
    works = [Filling(directory, manifest, split, names[split.name]) for split in splits]
    for work in works:
        _refuse_others(work)
    return works


def _refuse_others(work: Filling) -> None:
    """A split that has changed is brought up to date; one that has nothing in common with it is somebody else's."""
    records, count = dict(zip(work.names, work.split.records, strict=True)), 0
    for path in sorted((work.directory / work.split.name).glob("*.safetensors")):
        with suppress(StoreError):  # damaged: nobody can use it
            for row in read_contents(path).rows:
                count += 1
                if row.name in records and not change(row, records[row.name]):
                    return
    if count:
        raise StoreError(
            f"{work.directory}: its split {work.split.name} holds {count} other images, which would be lost; give "
            f"another folder, or remove {work.directory / work.split.name} first"
        )


def fill(
    work: Filling,
    make: Callable[[Sequence[int]], Generator[Made]],
    report: Callable[[int], None],
    share: tuple[int, int] = (0, 1),
) -> Written:
    """make: numbers of shards -> these, one after the other. share: this process and how many there are.

    Raises MtyoloError where others are writing this split already.
    """
    with locked(work.directory / work.split.name) if share[0] == 0 else nullcontext():
        return _filled(work, make, report, *share)


def _filled(
    work: Filling,
    make: Callable[[Sequence[int]], Generator[Made]],
    report: Callable[[int], None],
    index: int,
    processes: int,
) -> Written:
    numbers = range(index, work.shards, processes)
    todo = []
    for number in numbers:
        if _is_right(work, number):
            report(len(work.span(number)))
        else:
            todo.append(number)
    with closing(make(todo)) as making:
        for number in todo:
            _write(work, number, next(making))
    if index == 0:
        _remove_surplus(work)
    return Written(sum(len(work.span(number)) for number in todo), len(todo), len(numbers) - len(todo))


def _is_right(work: Filling, number: int) -> bool:
    """Is a shard there, undamaged, of this store, and of these very images?"""
    try:
        contents = check_shard(work.path(number))
    except StoreError:
        return False
    span = work.span(number)
    if contents.fingerprint != work.manifest.fingerprint or [row.name for row in contents.rows] != [
        work.names[image] for image in span
    ]:
        return False
    return not any(change(row, work.split.records[image]) for row, image in zip(contents.rows, span, strict=True))


def _write(work: Filling, number: int, made: Made) -> None:
    contents = Contents(fingerprint=work.manifest.fingerprint, rows=list(made.rows))
    write_shard(work.path(number), made.tensors, contents)


def _remove_surplus(work: Filling) -> None:
    """Shards beyond the last: the data set was larger once."""
    keep = {work.path(number) for number in range(work.shards)}
    for path in set((work.directory / work.split.name).glob("*.safetensors")) - keep:
        path.unlink()
