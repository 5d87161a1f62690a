"""Views, shifts, mosaics and mirrors: features and labels move together, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tiny_features import SIZE, TinyExtractor
from torch import Tensor

from mtyolo.config.training import AugmentConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import collate, make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError
from mtyolo.features.augment import FEATURE_DEFAULTS, Picture, arrange, feature_augment, shifted
from mtyolo.features.dataset import StoreDataset, make_store_loader
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.views import draw
from mtyolo.features.writer import extract
from mtyolo.geometry import PADDING_GREY
from mtyolo.structures import Batch

MakeStore = Callable[..., FeatureStore]

NOTHING = AugmentConfig(mosaic=0, flip=0, scale=0, translate=0, hue=0, saturation=0, value=0)


def only(**values: float) -> AugmentConfig:
    return NOTHING.model_copy(update=values)


def plain_images(split: Split) -> Tensor:
    """[N, 3, SIZE, SIZE] as an extractor sees them."""
    dataset = Dataset(split, SIZE)
    images = collate([dataset[index] for index in range(len(split))]).images
    assert images is not None
    return images.float() / 255


def item(dataset: StoreDataset, picture: Picture, index: int) -> Batch:
    """What the dataset makes of a picture that a test has chosen."""
    dataset._picture = lambda epoch, number: picture  # type: ignore[method-assign]
    return dataset[index]


def paste(picture: Picture, images: Tensor, cell: int) -> Tensor:
    """The picture by brute force, in pixels (cell 32) or mask cells (8). images: [N, C, side, side]."""
    canvas = torch.zeros_like(images[0])
    for piece in picture.pieces:
        height, width = piece.source.height * cell, piece.source.width * cell
        top, left = piece.source.top * cell, piece.source.left * cell
        y, x = piece.top * cell, piece.left * cell
        canvas[:, y : y + height, x : x + width] = images[piece.row][:, top : top + height, left : left + width]
    return canvas.flip(-1) if picture.mirrored else canvas


class BlindExtractor(TinyExtractor):
    """Without bias, so that black pixels give zero features; and symmetric, so that a mirrored image gives mirrored
    features."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.convolutions:
            layer.bias.data.zero_()
            layer.weight.data += layer.weight.data.flip(-1)


@pytest.fixture
def store(tmp_path: Path, split: Split) -> FeatureStore:
    extract(BlindExtractor(), [split], tmp_path / "store", SIZE, ExtractOptions(dtype="fp32"))
    return FeatureStore.open(tmp_path / "store")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 1), (0, -1)])
def test_shifted_and_mirrored_features_are_those_of_the_shifted_image(
    store: FeatureStore, split: Split, down: int, right: int, mirrored: bool
) -> None:
    picture = Picture((shifted(3, 0, 2, down, right),), mirrored)
    batch = item(StoreDataset(store, split, NOTHING), picture, 3)
    image = paste(picture, plain_images(split), 32)
    assert batch.pyramid is not None
    for stride, expected in BlindExtractor()(image[None]).items():
        torch.testing.assert_close(batch.pyramid[stride], expected, rtol=1e-5, atol=1e-6)


def test_a_mosaic_of_features_is_the_features_of_the_mosaic(store: FeatureStore, split: Split) -> None:
    images = plain_images(split)
    dataset = StoreDataset(store, split, only(mosaic=1.0, flip=0.5))
    seen = set()
    for epoch in range(12):
        picture = dataset._picture(epoch, 5)
        assert len(picture.pieces) == 4
        seen |= {tuple(piece.row for piece in picture.pieces)}
        batch = item(StoreDataset(store, split, NOTHING), picture, 5)
        expected = BlindExtractor()(paste(picture, images, 32)[None])
        assert batch.pyramid is not None
        for stride in expected:
            torch.testing.assert_close(batch.pyramid[stride], expected[stride], rtol=1e-5, atol=1e-6)
        assert 5 in {piece.row for piece in picture.pieces}
    assert len(seen) == 12, "mosaics vary"


@pytest.fixture
def labelled(tmp_path: Path) -> Split:
    """Four images, each with two polygons and their boxes, and two keypoints an object."""
    random = np.random.default_rng(1)
    for name in ("images/train", "labels/train", "labels-seg/train", "labels-pose/train"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"images/train/{number}.png"), np.zeros((128, 128, 3), np.uint8))
        boxes, polygons, points = [], [], []
        for _ in range(2):
            x, y = random.uniform(0.05, 0.5, 2)
            w, h = random.uniform(0.2, 0.45, 2)
            boxes.append(f"0 {x + w / 2} {y + h / 2} {w} {h}")
            polygons.append(f"0 {x} {y} {x + w} {y} {x + w} {y + h} {x} {y + h}")
            points.append(f"{boxes[-1]} {x} {y} 2 {x + w} {y + h} 1")
        for folder, lines in (("labels", boxes), ("labels-seg", polygons), ("labels-pose", points)):
            (tmp_path / folder / f"train/{number}.txt").write_text("\n".join(lines))
    content = {"path": str(tmp_path), "train": "images/train", "names": ["thing"], "kpt_shape": [2, 3]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content | {"flip_idx": [1, 0]}))
    return load_split(tmp_path / "data.yaml", "train")


@pytest.fixture
def larger(tmp_path: Path, labelled: Split) -> FeatureStore:
    extract(TinyExtractor(), [labelled], tmp_path / "larger", 128)
    return FeatureStore.open(tmp_path / "larger")


def test_masks_move_with_the_features(larger: FeatureStore, labelled: Split) -> None:
    """Against the union of all masks, moved by brute force."""
    whole = collate([Dataset(labelled, 128)[index] for index in range(4)]).targets
    assert whole.masks is not None
    unions = torch.stack([whole.masks[whole.image_index == index].amax(0) for index in range(4)])[:, None]
    dataset = StoreDataset(larger, labelled, only(mosaic=0.7, flip=0.5, translate=0.5))
    for epoch in range(40):
        picture = dataset._picture(epoch, epoch % 4)
        masks = dataset[(epoch, epoch % 4)].targets.masks
        assert masks is not None
        got = masks.amax(0) if len(masks) else torch.zeros_like(unions[0, 0])
        expected = paste(picture, unions, 8)[0]
        missing = (got != expected).sum()
        # Objects of which less than a tenth is left are dropped, with their few mask cells.
        assert missing <= 0.1 * 2 * unions.sum((1, 2, 3)).max()
        assert not ((got == 1) & (expected == 0)).any()


def test_boxes_hold_their_masks_and_keypoints_mark_their_corners(larger: FeatureStore, labelled: Split) -> None:
    """Each object is a rectangle, so its mask, its box and its two corner points must agree after any move."""
    dataset = StoreDataset(larger, labelled, only(mosaic=0.7, flip=0.5, translate=0.5))
    visible = 0
    for epoch in range(40):
        targets = dataset[(epoch, epoch % 4)].targets
        assert targets.masks is not None
        assert targets.keypoints is not None
        for mask, box, points in zip(targets.masks, targets.boxes_cxcywh * 128, targets.keypoints * 128, strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            corners = torch.tensor([columns[0] * 4, rows[0] * 4, columns[-1] * 4 + 4, rows[-1] * 4 + 4])
            edges = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
            torch.testing.assert_close(corners.float(), edges, rtol=0, atol=4.0)
            # Point 0 is the top left corner and point 1 the bottom right one; mirrored they swap names and sides:
            # 0 is then the bottom left corner, 1 the top right one.
            for point in points[points[:, 2] > 0]:
                visible += 1
                near_x = min(abs(point[0] - edges[0]), abs(point[0] - edges[2]))
                near_y = min(abs(point[1] - edges[1]), abs(point[1] - edges[3]))
                assert max(near_x, near_y) < 1e-3
    assert visible > 40


def test_a_mirror_is_that_of_the_pixel_pipeline(store: FeatureStore, split: Split) -> None:
    mine = StoreDataset(store, split, only(flip=1.0))[2].targets
    theirs = collate([Dataset(split, SIZE, only(flip=1.0))[2]]).targets
    torch.testing.assert_close(mine.boxes_cxcywh, theirs.boxes_cxcywh)
    assert mine.keypoints is not None
    assert theirs.keypoints is not None
    torch.testing.assert_close(mine.keypoints, theirs.keypoints)


@pytest.fixture
def rectangle(tmp_path: Path) -> Split:
    """One image: a white rectangle on black."""
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "labels/train").mkdir(parents=True)
    picture = np.zeros((200, 320, 3), np.uint8)
    picture[60:120, 80:240] = 255
    cv2.imwrite(str(tmp_path / "images/train/0.png"), picture)
    (tmp_path / "labels/train/0.txt").write_text(f"0 {160 / 320} {90 / 200} {160 / 320} {60 / 200}")
    (tmp_path / "data.yaml").write_text(
        yaml.safe_dump({"path": str(tmp_path), "train": "images/train", "names": ["thing"]})
    )
    return load_split(tmp_path / "data.yaml", "train")


@pytest.fixture
def views(tmp_path: Path, rectangle: Split) -> FeatureStore:
    """Nine views of it."""
    extract(TinyExtractor(), [rectangle], tmp_path / "store", 160, ExtractOptions(views=9))
    return FeatureStore.open(tmp_path / "store")


def edges_of(brightness: np.ndarray) -> Tensor:
    rows, columns = np.where(brightness > 0.7 * brightness.max())
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def edges_in(batch: Batch) -> Tensor:
    (box,) = batch.targets.boxes_cxcywh * 160
    return torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])


def test_the_boxes_of_a_view_lie_where_its_pixels_show_the_object(views: FeatureStore, rectangle: Split) -> None:
    drawn = draw(rectangle.records[0], "0.png", 160, 9, mirror=True)
    dataset = StoreDataset(views, rectangle, NOTHING)
    assert {view.mirrored for view in drawn.row.views} == {True, False}
    for view in range(9):
        batch = item(dataset, Picture((views.whole(0, view),)), 0)
        expected = edges_of(drawn.images[view].mean(2))
        torch.testing.assert_close(edges_in(batch), expected, rtol=0, atol=1.5)
        pixels = torch.from_numpy(drawn.images[view]).permute(2, 0, 1)[None].float() / 255
        assert batch.pyramid is not None
        with torch.no_grad():
            torch.testing.assert_close(batch.pyramid[8], TinyExtractor()(pixels)[8], rtol=2e-3, atol=2e-3)


def test_pixels_beside_features_are_those_of_the_same_view(views: FeatureStore, rectangle: Split) -> None:
    drawn = draw(rectangle.records[0], "0.png", 160, 9, mirror=True)
    dataset = StoreDataset(views, rectangle, NOTHING, pixels=True)
    for view in range(9):
        batch = item(dataset, Picture((views.whole(0, view),)), 0)
        assert batch.draw is not None
        assert (batch.draw([0])[0].permute(1, 2, 0).numpy() == drawn.images[view]).all()


@pytest.mark.parametrize(("down", "right"), [(0, 1), (0, -1), (1, 0), (-1, -1)])
def test_boxes_move_with_a_view_that_is_shifted(views: FeatureStore, rectangle: Split, down: int, right: int) -> None:
    images = draw(rectangle.records[0], "0.png", 160, 9, mirror=True).images
    brightness = torch.from_numpy(images).float().mean(3)[:, None]
    dataset, seen = StoreDataset(views, rectangle, NOTHING), 0
    for view in range(9):
        piece = shifted(0, view, 5, down, right)
        batch = item(dataset, Picture((piece,)), 0)
        if len(batch.targets.classes):
            expected = edges_of(paste(Picture((piece._replace(row=view),)), brightness, 32)[0].numpy())
            torch.testing.assert_close(edges_in(batch), expected, rtol=0, atol=1.5)
            seen += 1
    assert seen > 6


def test_views_are_coloured_each_in_its_own_way(rectangle: Split) -> None:
    brightest = draw(rectangle.records[0], "0.png", 160, 9, mirror=True).images.max((1, 2, 3))
    assert brightest[0] == 255
    assert len(set(brightest)) > 4


def test_an_image_that_is_of_another_size_than_its_record_counts_as_damaged(
    rectangle: Split, caplog: pytest.LogCaptureFixture
) -> None:
    record = replace(rectangle.records[0], height=320, width=200)
    drawn = draw(record, "0.png", 160, 2, mirror=True)
    assert not drawn.row.usable
    assert (drawn.images == PADDING_GREY).all()
    assert "is 320x200, was 200x320; stored as an image without labels" in caplog.text


def test_a_damaged_image_teaches_nothing_and_neither_do_its_mosaics(tmp_path: Path, labelled: Split) -> None:
    path = labelled.records[0].path
    path.write_bytes(path.read_bytes()[:60])
    extract(TinyExtractor(), [labelled], tmp_path / "store", 128)
    store = FeatureStore.open(tmp_path / "store")
    plain = StoreDataset(store, labelled)[0].targets
    assert len(plain.classes) == 0
    assert not any(flags.any() for flags in plain.labelled.values())
    dataset = StoreDataset(store, labelled, only(mosaic=1.0))
    for epoch in range(12):
        damaged = 0 in {piece.row for piece in dataset._picture(epoch, 1).pieces}
        flags = dataset[(epoch, 1)].targets.labelled
        assert {task: bool(flag) for task, flag in flags.items()} == dict.fromkeys(flags, not damaged)


def test_the_plain_view_keeps_objects_of_a_pixel_as_evaluation_does(tmp_path: Path, rectangle: Split) -> None:
    (tmp_path / "labels/train/0.txt").write_text("0 0.5 0.5 0.002 0.002")
    split = load_split(tmp_path / "data.yaml", "train")
    extract(TinyExtractor(), [split], tmp_path / "store", 160)
    targets = StoreDataset(FeatureStore.open(tmp_path / "store"), split)[0].targets
    torch.testing.assert_close(targets.boxes_cxcywh, collate([Dataset(split, 160)[0]]).targets.boxes_cxcywh)


def test_masks_are_kept_as_far_as_memory_allows(larger: FeatureStore, labelled: Split) -> None:
    dataset = StoreDataset(larger, labelled)
    dataset.labels.left = 2 * 64 * 64 // 8  # of one image: two masks at half its size, a bit a pixel
    first = [dataset[index].targets.masks for index in range(4)]
    assert list(dataset.labels.packed) == [0]
    for index, masks in enumerate(first):
        assert masks is not None
        assert torch.equal(dataset[index].targets.masks, masks)


def test_items_depend_only_on_seed_epoch_and_index(larger: FeatureStore, labelled: Split) -> None:
    augment = only(mosaic=0.5, flip=0.5, translate=0.3)
    one, other = StoreDataset(larger, labelled, augment, 7), StoreDataset(larger, labelled, augment, 7)
    other[(0, 0)], other[(3, 2)]
    first, again = one[(2, 1)], other[(2, 1)]
    torch.testing.assert_close(first.targets.boxes_cxcywh, again.targets.boxes_cxcywh, rtol=0, atol=0)
    assert first.pyramid is not None
    assert again.pyramid is not None
    assert all(torch.equal(first.pyramid[stride], again.pyramid[stride]) for stride in first.pyramid)
    boxes = [StoreDataset(larger, labelled, augment, seed)[(2, 1)].targets.boxes_cxcywh for seed in range(8)]
    assert len({tuple(box.flatten().tolist()) for box in boxes}) > 1, "the seed matters"


def test_every_epoch_sees_every_image_in_the_order_of_the_pixel_loader(larger: FeatureStore, labelled: Split) -> None:
    mine = make_store_loader(larger, labelled, 3, augment=NOTHING, shuffle=True, seed=5)
    theirs = make_loader(Dataset(labelled, 128), 3, shuffle=True, workers=0, seed=5)
    for epoch in range(3):
        mine.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        theirs.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        assert [b.indices.tolist() for b in mine] == [b.indices.tolist() for b in theirs]


def test_pieces_of_a_mosaic_fill_the_input_without_overlap() -> None:
    random = np.random.default_rng(0)
    for cells in (2, 5, 10, 20):
        for _ in range(50):
            picture = arrange((0, 1, 2, 3), 1, cells, only(mosaic=1.0), random)
            filled = np.zeros((cells, cells), int)
            for piece in picture.pieces:
                filled[piece.top : piece.top + piece.source.height, piece.left : piece.left + piece.source.width] += 1
                assert piece.source.top + piece.source.height <= cells
                assert piece.source.left + piece.source.width <= cells
            assert (filled == 1).all()


def test_mosaics_take_any_view_part_and_place() -> None:
    random = np.random.default_rng(0)
    mosaics = [arrange((0, 1, 2, 3), 3, 8, only(mosaic=1.0), random).pieces for _ in range(200)]
    first = [piece for pieces in mosaics for piece in pieces if piece.row == 0]
    assert {piece.view for piece in first} == {0, 1, 2}
    assert {(piece.top > 0, piece.left > 0) for piece in first} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    # Each side between a quarter and three quarters, taken from anywhere.
    assert {piece.source.height for piece in first} == {piece.source.width for piece in first} == set(range(2, 7))
    assert {piece.source.top for piece in first} == {piece.source.left for piece in first} == set(range(7))


def test_shifts_go_both_ways() -> None:
    random = np.random.default_rng(0)
    pieces = [arrange((0,), 1, 10, only(translate=0.2), random).pieces[0] for _ in range(200)]
    moves = np.array([(piece.top - piece.source.top, piece.left - piece.source.left) for piece in pieces])
    assert set(moves[:, 0]) == set(moves[:, 1]) == set(range(-2, 3))


def test_what_needs_pixels_is_refused_only_when_somebody_asked_for_it() -> None:
    assert feature_augment(AugmentConfig()) == FEATURE_DEFAULTS
    assert feature_augment(AugmentConfig(), aligns=True).flip == 0, (
        "features of a mirror image are not mirrored features"
    )
    assert feature_augment(AugmentConfig(flip=0.3), aligns=True).flip == 0.3
    assert feature_augment(AugmentConfig(), aligns=True).mosaic == 1
    assert feature_augment(AugmentConfig(mosaic=0), aligns=True).mosaic == 0
    assert feature_augment(AugmentConfig(mosaic=0.3)).mosaic == 0.3
    assert feature_augment(AugmentConfig(hue=0)) == FEATURE_DEFAULTS
    with pytest.raises(ConfigError, match=r"augment\.hue: 0\.1 needs pixels.*extract --views"):
        feature_augment(AugmentConfig(hue=0.1))


def test_a_loader_made_from_python_augments_as_features_like_it(store: FeatureStore, split: Split) -> None:
    def augment(value: AugmentConfig | bool | None) -> AugmentConfig | None:
        loader = make_store_loader(store, split, 2, augment=value, shuffle=False, seed=0)
        assert isinstance(loader.dataset, StoreDataset)
        return loader.dataset.augment

    assert augment(True) == augment(AugmentConfig()) == FEATURE_DEFAULTS
    assert augment(False) is augment(None) is None
    assert augment(AugmentConfig(mosaic=1.0)) == FEATURE_DEFAULTS.model_copy(update={"mosaic": 1.0})
    with pytest.raises(ConfigError, match=r"augment\.scale: 0\.5 needs pixels"):
        augment(AugmentConfig(scale=0.5))


def test_without_flip_idx_nothing_with_keypoints_is_mirrored(store: FeatureStore, split: Split) -> None:
    dataset = StoreDataset(store, replace(split, flip_idx=None), only(flip=1.0))
    assert not any(dataset._picture(epoch, 0).mirrored for epoch in range(5))
