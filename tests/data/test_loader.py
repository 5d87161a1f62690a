"""Order, batches, and independence from workers and caches."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtyolo.config.training import AugmentConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import EpochBatches, collate, make_loader
from mtyolo.data.records import ImageRecord, Problems, Split, labels_of
from mtyolo.data.split import load_split
from mtyolo.distill.pictures import keys_of
from mtyolo.errors import ConfigError
from mtyolo.structures import Batch


@pytest.fixture(scope="module")
def train(coco_mini: Path) -> Split:
    split = load_split(coco_mini, "train")
    return replace(split, records=split.records[:16])


def assert_same(one: Batch, other: Batch) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    for name in ("classes", "boxes_cxcywh", "masks", "keypoints", "image_index"):
        torch.testing.assert_close(getattr(one.targets, name), getattr(other.targets, name), rtol=0, atol=0)
    assert one.images is not None
    assert other.images is not None
    assert torch.equal(one.images, other.images)


def test_a_batch_has_the_forms_of_structures(train: Split) -> None:
    batch = next(iter(make_loader(Dataset(train, 96), 4, shuffle=False, workers=0, seed=0)))
    targets = batch.targets
    objects = sum(int((~record.labels.crowd).sum()) for record in train.records[:4])
    assert batch.images is not None
    assert batch.images.shape == (4, 3, 96, 96)
    assert batch.images.dtype == torch.uint8
    assert targets.boxes_cxcywh.shape == (objects, 4)
    assert targets.masks is not None
    assert (targets.masks.shape, targets.masks.dtype) == ((objects, 24, 24), torch.uint8)
    assert targets.keypoints is not None
    assert targets.keypoints.shape == (objects, 17, 3)
    assert {task: flags.tolist() for task, flags in targets.labelled.items()} == dict.fromkeys(
        ("detect", "segment", "keypoint"), [True] * 4
    )
    assert [letterbox.width for letterbox in batch.letterboxes] == [record.width for record in train.records[:4]]


def test_a_loader_pins_every_tensor_that_is_to_travel(train: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a GPU; here a stand-in counts."""
    from torch.utils.data._utils.pin_memory import pin_memory  # what a DataLoader calls

    batch = next(iter(make_loader(Dataset(train, 96), 4, shuffle=False, workers=0, seed=0)))
    batch = replace(batch, pyramid={8: torch.rand(4, 2, 12, 12)}, replaced={8: torch.empty(1, device="meta")})
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    found = pin_memory(batch)
    assert_same(found, batch)
    targets = found.targets
    tensors = [found.images, found.pyramid[8], targets.image_index, targets.classes, targets.boxes_cxcywh]
    tensors += [targets.masks, targets.keypoints, *targets.labelled.values()]
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in pinned}
    assert found.replaced == batch.replaced, "what lies elsewhere stays there"


def test_targets_are_fractions_that_lead_back_to_the_original_boxes(train: Split) -> None:
    batch = next(iter(make_loader(Dataset(train, 160), 8, shuffle=False, workers=0, seed=0)))
    start = 0
    for index, letterbox in enumerate(batch.letterboxes):
        labels = train.records[index].labels
        original = labels.boxes_xyxy[~labels.crowd]
        mine = batch.targets.boxes_cxcywh[batch.targets.image_index == index].numpy() * 160
        corners = np.concatenate([mine[:, :2] - mine[:, 2:] / 2, mine[:, :2] + mine[:, 2:] / 2], 1)
        back = (corners - [letterbox.left, letterbox.top] * 2) / letterbox.ratio
        # The picture's size in pixels is rounded, so an edge may move by half an input pixel.
        np.testing.assert_allclose(back, original, atol=0.51 / letterbox.ratio)
        start += len(original)
    assert start == len(batch.targets.classes)


def test_items_depend_on_seed_epoch_and_index_only(train: Split) -> None:
    first, second = (Dataset(train, 64, AugmentConfig(), seed=5) for _ in range(2))
    second[(7, 3)]
    np.random.seed(1)
    assert_same(collate([first[(2, 4)]]), collate([second[(2, 4)]]))
    assert not np.array_equal(first[(2, 4)].image, first[(3, 4)].image)
    assert not np.array_equal(first[(2, 4)].image, Dataset(train, 64, AugmentConfig(), seed=6)[(2, 4)].image)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than a small machine has cores
def test_worker_processes_follow_the_epoch_and_give_the_same_batches(train: Split) -> None:
    alone, helped = (Dataset(train, 64, AugmentConfig(), seed=1) for _ in range(2))
    loaders = [
        make_loader(dataset, 5, shuffle=True, workers=workers, seed=1) for dataset, workers in ((alone, 0), (helped, 2))
    ]
    seen = []
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        for one, other in zip(*loaders, strict=True):
            assert_same(one, other)
            seen.append(one.indices.tolist())
    assert seen[:4] != seen[4:]


def test_workers_share_decoded_images(train: Split) -> None:
    dataset = Dataset(train, 64)
    list(make_loader(dataset, 4, shuffle=False, workers=1, seed=0))
    assert dataset.working.filled.all()  # decoded by the worker, there for this process


def test_a_cache_without_room_gives_the_same_items(train: Split) -> None:
    free, bound = Dataset(train, 96, AugmentConfig()), Dataset(train, 96, AugmentConfig(), cache_bytes=0)
    some = Dataset(train, 96, AugmentConfig(), cache_bytes=60_000)
    assert (bound.working.kept, free.working.kept) == (0, 16)
    assert 0 < some.working.kept < 16
    for index in (0, 9):
        assert_same(collate([free[(1, index)]]), collate([bound[(1, index)]]))
        assert_same(collate([free[(1, index)]]), collate([some[(1, index)]]))


def test_every_image_once_an_epoch_in_an_order_of_its_own(train: Split) -> None:
    dataset = Dataset(train, 64)
    batches = EpochBatches(dataset, 5, shuffle=True, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append([index for batch in batches for _, index in batch])
    assert sorted(orders[0]) == list(range(16))
    assert orders[0] == orders[2] != orders[1]
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]


def partly_labelled(folder: Path, labelled: list[set[str]]) -> Split:
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    records = [ImageRecord(folder / "a.png", 40, 40, labels_of([], tasks, masks=True, points=2)) for tasks in labelled]
    return Split("train", records, {0: "a"}, Problems(), points=2, flip_idx=[1, 0])


def test_no_task_starves_where_few_images_have_it(tmp_path: Path) -> None:
    labelled = [{"detect"}] * 36 + [{"detect", "segment"}] * 3 + [{"keypoint"}] * 1
    dataset = Dataset(partly_labelled(tmp_path, labelled), 32)
    batches = list(EpochBatches(dataset, 4, shuffle=True, seed=0))
    assert [len(batch) for batch in batches] == [4] * 10
    for batch in batches:
        assert set().union(*(labelled[index] for _, index in batch)) == {"detect", "segment", "keypoint"}
        assert len({index for _, index in batch}) == 4


def test_a_mosaic_joins_only_images_labelled_alike(tmp_path: Path) -> None:
    labelled = [{"detect"}] * 5 + [{"detect", "keypoint"}] * 5
    dataset = Dataset(partly_labelled(tmp_path, labelled), 32, AugmentConfig(mosaic=1.0))
    assert [set(dataset[(0, index)].labelled) for index in range(10)] == labelled


def test_an_image_that_turns_out_damaged_counts_as_unlabelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = partly_labelled(tmp_path, [{"detect"}])
    (tmp_path / "a.png").write_bytes(b"gone")
    batch = collate([Dataset(split, 32)[0]])
    assert batch.targets.labelled["detect"].tolist() == [False]
    assert "a.png: not an image" in caplog.text


def test_a_size_that_masks_can_not_follow_is_refused(train: Split) -> None:
    with pytest.raises(ConfigError, match="330"):
        Dataset(train, 330)


def test_a_data_set_travels_to_processes_that_do_not_fork(train: Split) -> None:
    dataset = Dataset(train, 64, AugmentConfig(), seed=2)
    there = pickle.loads(pickle.dumps(dataset))
    assert_same(collate([dataset[(1, 3)]]), collate([there[(1, 3)]]))


def test_samples_are_named_by_their_pixels_where_somebody_asks(train: Split) -> None:
    plain, named = (Dataset(train, 96, AugmentConfig(), keyed=keyed) for keyed in (False, True))
    batch = next(iter(make_loader(named, 3, shuffle=True, workers=0, seed=0)))
    assert batch.keys == keys_of(batch.images)
    assert len(set(batch.keys)) == 3
    assert next(iter(make_loader(plain, 3, shuffle=True, workers=0, seed=0))).keys == [None] * 3
