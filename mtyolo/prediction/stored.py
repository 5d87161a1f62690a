"""What a model sees of pictures whose features are in a store: these, in place of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mtyolo.data.images import image_size
from mtyolo.data.records import ImageRecord, Problems, labels_of
from mtyolo.errors import DataError, StoreError
from mtyolo.features.finite import check_stored
from mtyolo.features.index import change
from mtyolo.features.reader import FeatureStore
from mtyolo.geometry import letterbox_of
from mtyolo.model import Model
from mtyolo.prediction.sources import Inputs, Source

Place = tuple[str, int]
"""Split and row."""

REMEDY = "predict without features, where there is an extractor, or make its features again"
WITHOUT_FEATURES = "image without features"
"""A kind of problem."""
DIFFERENT_NAMES = "give these pictures different names, or a folder called like their split"


class StoredInputs:
    """Features of pictures, at the store's size. Files are only looked at: are they still what the features are of?

    Raises StoreError where the store is damaged, its features are not this model's, or pictures are no files.
    """

    def __init__(self, directory: Path | str, model: Model) -> None:
        self.store = FeatureStore.open(directory, "stream")
        if model.extractor is None:
            raise StoreError(f"{directory}: this model has no extractor, so it takes images and not features")
        self.indices = {split: self.store.index(split) for split in self.store.manifest.splits}
        self.store.check_made_by(self.store.identity_for(model), model.extractor.levels, self.store.manifest.size)  # type: ignore[arg-type, union-attr]

    def __call__(self, sources: Sequence[Source], problems: Problems) -> Inputs:
        """Those that can be used; the others become problems."""
        places: list[tuple[Source, Place]] = []
        for source in sources:
            if source.path is None:
                raise StoreError("a feature store knows pictures by their files: name files or folders, not arrays")
            try:
                places.append((source, self._place(source.path)))
            except (DataError, StoreError) as error:
                kind = "unreadable image" if isinstance(error, DataError) else WITHOUT_FEATURES
                problems.add(kind, source.path, str(error).removeprefix(f"{source.path}: "))
        side = self.store.manifest.size
        rows = [self.indices[split].rows[row] for _, (split, row) in places]
        parts = [self.store.read(split, [[self.store.whole(row)]]) for _, (split, row) in places]
        pyramid = {stride: torch.cat([part[stride] for part in parts]) for stride in parts[0]} if parts else None
        used = [source for source, _ in places]
        check_stored(self.store.directory, pyramid, [source.path for source in used])
        return Inputs(used, [letterbox_of(row.height, row.width, (side, side)) for row in rows], pyramid=pyramid)

    def _place(self, path: Path) -> Place:
        """Raises DataError for a picture that can not be read, StoreError where the store has not its features."""
        height, width = image_size(path)
        record = ImageRecord(path.absolute(), height, width, labels_of([], (), masks=False, points=None))
        named = [(split, row) for split, index in self.indices.items() if (row := index.find(record.path)) is not None]
        reasons = {(split, row): change(self.indices[split].rows[row], record) for split, row in named}
        same = [place for place, reason in reasons.items() if reason is None]
        if not same:
            why = (
                f"changed after its features were made ({reasons[named[0]]})"
                if named
                else f"is not in {self.store.directory}"
            )
            raise StoreError(f"{path}: {why}; {REMEDY}")
        split, row = self._only(same, record.path)
        if not self.indices[split].rows[row].usable:
            raise DataError(f"{path}: could not be read when its features were made")
        return split, row

    def _only(self, places: Sequence[Place], path: Path) -> Place:
        """Of one content any will do; but a store without hashes may have other pictures of the same name."""
        if len(places) == 1 or all(self.indices[split].rows[row].sha256 for split, row in places):
            return places[0]
        beside = [place for place in places if place[0] in path.parts]
        if len(beside) != 1:
            splits = " and ".join(split for split, _ in places)
            raise StoreError(f"{path}: {self.store.directory} has it in {splits}; {DIFFERENT_NAMES}")
        return beside[0]
