"""Batches for training from a store: labels and order as from images, with a pyramid in the place of pixels, or beside
them where teachers look on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mtyolo.config.training import AugmentConfig
from mtyolo.data.cache import WorkingImages
from mtyolo.data.dataset import Dataset, Pick, peers_of, without_crowd
from mtyolo.data.loader import EpochBatches, collate
from mtyolo.data.records import Split, pictures_only
from mtyolo.data.transforms import Sample
from mtyolo.errors import DataError, StoreError
from mtyolo.features.augment import Picture, arrange, loader_augment, plain
from mtyolo.features.finite import check_stored
from mtyolo.features.labels import PieceLabels, joined, mirror
from mtyolo.features.reader import FeatureStore
from mtyolo.features.views import redraw, view_key
from mtyolo.geometry import PADDING_GREY
from mtyolo.structures import Batch, Pyramid


class StoreDataset(torch.utils.data.Dataset[Batch]):
    """A split whose images are in a store. Item i of epoch e depends only on (seed, e, i).

    Labels come from `split` as it is now. augment: None for the plain first view, as for evaluation.
    targets: of `replaced.open_targets`, to be read along, put together from the same pieces.
    pixels: batches can draw the very views that the extractor saw, for teachers to look at, and name them; then
    pictures are whole views.
    Raises StoreError where images are missing from the store or have changed since, or where views are mirrored and
    `split` has points without `flip_idx`.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: Split,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        targets: FeatureStore | None = None,
        pixels: bool = False,
    ) -> None:
        self.store = store
        self.targets = targets
        self.split = split
        self.augment = _imitable(augment, whole=pixels) if targets is not None or pixels else augment
        self.seed = seed
        self.epoch = 0
        self.records = [without_crowd(record) for record in split.records]
        self.rows = store.index(split.name).match(split.records)
        self.index_of = {row: index for index, row in enumerate(self.rows)}
        self.peers = peers_of(self.records)
        self.may_mirror = split.may_mirror
        if augment is not None and not self.may_mirror:
            _check_mirrors(store, split, self.rows)
        size = store.manifest.size
        self.cells = store.cells if targets is None else math.gcd(store.cells, targets.cells)
        self.labels = PieceLabels(self.records, size, size // self.cells, split.flip_idx)
        self.working = WorkingImages(pictures_only(split).records, size) if pixels else None

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch plain indices mean, and samplers hand on."""
        self.epoch = epoch

    def __getitem__(self, pick: int | Pick) -> Batch:
        return self.__getitems__([pick])

    def __getitems__(self, picks: Sequence[int | Pick]) -> Batch:
        """A batch at once, so that features are copied straight to where the model reads them."""
        chosen = [pick if isinstance(pick, tuple) else (self.epoch, pick) for pick in picks]
        pictures = [self._picture(epoch, index) for epoch, index in chosen]
        samples = [self._sample(picture, index) for picture, (_, index) in zip(pictures, chosen, strict=True)]
        batch = collate(samples)
        replaced = None if self.targets is None else self._read(self.targets, pictures)
        batch = replace(batch, images=None, keys=None, pyramid=self._read(self.store, pictures), replaced=replaced)
        if self.working is None:
            return batch
        keys = [self._key(picture) for picture in pictures]
        return replace(batch, draw=partial(self._draw, self.working, pictures), keys=keys)

    def _read(self, store: FeatureStore, pictures: Sequence[Picture]) -> Pyramid:
        finer = store.cells // self.cells
        pieces = [[piece.in_cells(finer) for piece in picture.pieces] for picture in pictures]
        return store.read(self.split.name, pieces, [picture.mirrored for picture in pictures])

    def _draw(self, working: WorkingImages, pictures: Sequence[Picture], numbers: Sequence[int]) -> Tensor:
        """[N, 3, size, size] uint8 RGB of whole views."""
        drawn = [self._drawn(working, pictures[number]) for number in numbers]
        return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)

    def _key(self, picture: Picture) -> str | None:
        (piece,) = picture.pieces
        row = self.store.index(self.split.name).rows[piece.row]
        return view_key(row, piece.view, self.store.manifest.size, mirrored=picture.mirrored)

    def _drawn(self, working: WorkingImages, picture: Picture) -> NDArray[np.uint8]:
        (piece,) = picture.pieces
        row, size = self.store.index(self.split.name).rows[piece.row], self.store.manifest.size
        if not row.usable:
            return np.full((size, size, 3), PADDING_GREY, np.uint8)
        try:
            image = redraw(working.image(self.index_of[piece.row]), row, piece.view, size)
        except DataError as error:
            # Not grey, as its features still show the objects.
            raise DataError(
                f"{error}; teachers look at the pictures behind a feature store: put it back and go on with --resume, "
                "or take distill out of the plan"
            ) from None
        return np.ascontiguousarray(image[:, ::-1]) if picture.mirrored else image

    def _picture(self, epoch: int, index: int) -> Picture:
        if self.augment is None:
            return plain(self.rows[index], self.cells)
        random = np.random.default_rng((self.seed, epoch, index))
        others = self.peers[index][random.integers(len(self.peers[index]), size=3)]
        rows = [self.rows[number] for number in (index, *others)]
        picture = arrange(rows, self.store.manifest.views, self.cells, self.augment, random)
        return picture if self.may_mirror else picture._replace(mirrored=False)

    def _sample(self, picture: Picture, index: int) -> Sample:
        row_of = self.store.index(self.split.name).rows
        parts = [self.labels.draw(self.index_of[piece.row], row_of[piece.row], piece) for piece in picture.pieces]
        sample = replace(joined(parts), index=index)
        return mirror(sample, self.store.manifest.size, self.split.flip_idx) if picture.mirrored else sample


def make_store_loader(
    store: FeatureStore,
    split: Split,
    batch: int,
    *,
    augment: AugmentConfig | bool | None,
    shuffle: bool,
    seed: int,
    targets: FeatureStore | None = None,
    pixels: bool = False,
    finite: bool = False,
) -> DataLoader[Batch]:
    """Like `data.loader.make_loader`, with features. It has no worker processes: handing features over from one costs
    more than copying them from a mapped file.

    augment: True for what suits features (mirrors alone), an AugmentConfig for that with what it names changed, None or
    False for the plain first view. finite: raise StoreError for features that are not, as where models are judged.
    """
    dataset = StoreDataset(store, split, loader_augment(augment), seed, targets, pixels)
    batches = EpochBatches(cast(Dataset, dataset), batch, shuffle=shuffle, seed=seed)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=partial(_checked, dataset) if finite else _as_it_is)


def _check_mirrors(store: FeatureStore, split: Split, rows: Sequence[int]) -> None:
    """Points of a mirrored view change names, and nothing says how."""
    known = store.index(split.name).rows
    mirrored = sum(view.mirrored for number in rows for view in known[number].views)
    if mirrored:
        raise StoreError(
            f"{store.directory}: {mirrored} of its views of {split.name} are mirrored, and the data does not say which "
            "keypoints swap then: add flip_idx to the data file, or extract with this data, not from a folder of photos"
        )


def _imitable(augment: AugmentConfig | None, *, whole: bool) -> AugmentConfig | None:
    """No shifts: what they uncover is nothing to imitate. whole: no mosaics, as teachers have seen the whole view."""
    kept = {"translate": 0.0} | ({"mosaic": 0.0} if whole else {})
    return augment and augment.model_copy(update=kept)


def _checked(dataset: StoreDataset, batch: Any) -> Batch:
    names = [dataset.records[index].path for index in batch.indices.tolist()]
    check_stored(dataset.store.directory, batch.pyramid, names)
    return cast(Batch, batch)


def _as_it_is(batch: Any) -> Batch:
    return cast(Batch, batch)
