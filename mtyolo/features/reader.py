"""Features from a store: checked against the model and the data, then copied into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtyolo.data.records import Split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import GIVEN
from mtyolo.extractors.pretrained import identity_of
from mtyolo.features.codec import TORCH_DTYPES, decode_into
from mtyolo.features.index import SplitIndex
from mtyolo.features.manifest import Manifest, difference_of_identity, extract_command, read_manifest, repair_of
from mtyolo.features.residency import Residency, Shelf
from mtyolo.features.shards import Stored, read_contents, shard_path
from mtyolo.structures import Level, Pyramid


class Window(NamedTuple):
    """A part of the input, in cells of the coarsest level."""

    top: int
    left: int
    height: int
    width: int

    def slices(self, finer: int) -> tuple[slice, slice]:
        """Rows and columns at a level with `finer` times as many cells a side."""
        top, left = self.top * finer, self.left * finer
        return slice(top, top + self.height * finer), slice(left, left + self.width * finer)

    def in_cells(self, finer: int) -> Window:
        """The same part, counted in cells that are so many times finer."""
        return Window(*(finer * side for side in self))


class Piece(NamedTuple):
    """A part of one stored view, and where it goes in the new pyramid."""

    row: int
    view: int
    source: Window
    top: int
    left: int

    def in_cells(self, finer: int) -> Piece:
        """The same piece, counted in cells that are so many times finer."""
        return Piece(self.row, self.view, self.source.in_cells(finer), finer * self.top, finer * self.left)


class FeatureStore:
    """An open store. Files are opened when first used and stay open; reading copies, it never decompresses.

    Made by `FeatureStore.open`.
    """

    def __init__(self, directory: Path, manifest: Manifest, residency: Residency, device: torch.device) -> None:
        self.directory = directory
        self.manifest = manifest
        self.residency = residency
        self.device = device
        self._shelves: dict[str, Shelf] = {}
        self._indices: dict[str, SplitIndex] = {}

    @classmethod
    def open(
        cls, directory: Path | str, residency: Residency = "auto", device: torch.device | str = "cpu"
    ) -> FeatureStore:
        """device: where batches are wanted. Raises StoreError where there is no store."""
        return cls(Path(directory), read_manifest(directory), residency, torch.device(device))

    @property
    def cells(self) -> int:
        """Side of the coarsest level."""
        return self.manifest.size // max(self.manifest.levels)

    def index(self, split: str) -> SplitIndex:
        """Which images the store has. Raises StoreError for a missing or damaged table of contents."""
        if split not in self._indices:
            self._open(split)
        return self._indices[split]

    def check(self, model: Any, split: Split, size: int) -> list[int]:
        """Do these features belong to the model's extractor, to this size, and to these images?

        model: has an `extractor` with `levels` and `identity`. Returns the row of each image of the split.
        Raises StoreError saying in one sentence what differs.
        """
        if model.extractor is None:
            raise StoreError(f"{self.directory}: this model has no extractor, so it takes images and not features")
        self.check_made_by(self.identity_for(model), model.extractor.levels, size)
        return self.index(split.name).match(split.records)

    def identity_for(self, model: Any) -> dict[str, str]:
        """What a model's extractor says it is. One without a name goes by that of its class, as `mtyolo extract` notes
        it; beside a store of another program by that in the model file, as it must stand in the store."""
        identity = identity_of(model.extractor)
        if "name" in identity:
            return identity
        named = type(model.extractor).__name__ if self.manifest.made_here else model.config.extractor.name
        return {"name": named} | identity

    def check_made_by(self, identity: Mapping[str, str], levels: Sequence[Level], size: int) -> None:
        """Raises StoreError where extractor, levels or size are not those of the store."""
        given = identity.get("name") in (None, GIVEN)  # the model has not met a store yet, and takes any
        difference = None if given else difference_of_identity(self.manifest.extractor, identity)
        if difference and not self.manifest.made_here:
            raise StoreError(
                f"{self.directory}: {difference}; give a store of the features that the model has learned from, or "
                "train another model on this one"
            )
        wanted = {level.stride: level.channels for level in levels}
        if difference is None and wanted != self.manifest.levels:
            difference = f"has levels (stride: channels) {self.manifest.levels}, the model's extractor has {wanted}"
        if difference:
            make = "run mtyolo extract" if self.manifest.made_here else "let the program that made these write them"
            raise StoreError(f"{self.directory}: {difference}; {make} into another folder, or change what differs")
        if size != self.manifest.size:
            raise StoreError(
                f"{self.directory}: made at {self.manifest.size} px, the model asks for {size} px; "
                f"give --imgsz {self.manifest.size}, or make features of {size} px in another folder"
            )

    def read(
        self,
        split: str,
        pictures: Sequence[Sequence[Piece]],
        mirrored: Sequence[bool] | None = None,
    ) -> Pyramid:
        """A batch of pyramids, each put together from pieces of stored ones; what no piece covers is zero.

        mirrored: which of them to turn left to right at the end.
        Returns stride -> [B, C, size/stride, size/stride] float32, channels last, on the store's device.
        """
        index, shelf = self.index(split), self._shelves[split]
        pyramid: Pyramid = {}
        for stride in self.manifest.levels:
            batch = self._empty(len(pictures), stride, shelf.device)
            for number, pieces in enumerate(pictures):
                target = batch[number]
                if not _covers(pieces, self.cells):
                    target.zero_()
                for piece in pieces:
                    shard, place = index.places[piece.row]
                    self._copy(shelf[shard], place, piece, stride, target)
                if mirrored is not None and mirrored[number]:
                    target.copy_(target.flip(-1))
            # As convolutions take them: each would turn them round for itself, in both directions of a step.
            there = batch.to(self.device, non_blocking=True)
            pyramid[stride] = there.to(torch.float32, memory_format=torch.channels_last)
        return pyramid

    def _empty(self, images: int, stride: int, device: torch.device) -> Tensor:
        """A level of a batch to be filled. What has to cross to a GPU goes as it is stored, from pinned memory."""
        crosses = device != self.device
        dtype = TORCH_DTYPES[self.manifest.dtype] if crosses and self.manifest.dtype != "int8" else torch.float32
        return torch.empty((images, *self.manifest.shape(stride)), dtype=dtype, device=device, pin_memory=crosses)

    def _copy(self, stored: Stored, place: int, piece: Piece, stride: int, target: Tensor) -> None:
        finer = max(self.manifest.levels) // stride
        to = piece.source._replace(top=piece.top, left=piece.left).slices(finer)
        row = place * self.manifest.views + piece.view
        decode_into(target[:, to[0], to[1]], stored, stride, row, *piece.source.slices(finer))

    def whole(self, row: int, view: int = 0) -> Piece:
        """All of one stored view, where it was."""
        return Piece(row, view, Window(0, 0, self.cells, self.cells), 0, 0)

    def _open(self, split: str) -> None:
        count = self.manifest.splits.get(split)
        if count is None:
            there = ", ".join(self.manifest.splits)
            make = "write it there with the program that made this store"
            if self.manifest.made_here:
                make = f"with the model and data of the others, run {extract_command(self.directory, [split])}"
            raise StoreError(f"{self.directory}: has no split {split}, only {there}; {make}")
        contents = []
        for number in range(self.manifest.shards(split)):
            path = shard_path(self.directory, split, number)
            content = read_contents(path)
            if content.fingerprint not in (None, self.manifest.fingerprint):
                raise StoreError(
                    f"{path}: belongs to another store (its manifest was different); {repair_of(self.directory)}"
                )
            contents.append(content)
        found = sum(len(content.rows) for content in contents)
        if found != count:
            raise StoreError(f"{self.directory}: the shards of {split} have {found} images, the manifest says {count}")
        self._shelves[split] = Shelf(self.directory, self.manifest, split, contents, self.residency, self.device)
        self._indices[split] = SplitIndex(split, contents, made_here=self.manifest.made_here)


def _covers(pieces: Sequence[Piece], cells: int) -> bool:
    """Pieces never overlap, so their area tells whether they fill the input."""
    return sum(piece.source.height * piece.source.width for piece in pieces) == cells * cells
