"""Teachers beside a feature store: the student reads features, its teachers look at the same views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from tiny_students import SIZE, tiny_model

from mtyolo.assembly import build
from mtyolo.checkpoint import save_weights
from mtyolo.config.data import DataConfig
from mtyolo.config.distill import TeacherConfig
from mtyolo.config.model import shipped_configs
from mtyolo.config.reading import read_yaml
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.distill.lessons import open_lessons
from mtyolo.distill.pictures import drawn, keys_of, pictures_of
from mtyolo.errors import DataError
from mtyolo.features.dataset import StoreDataset, make_store_loader
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.shards import View
from mtyolo.features.standin import stand_in
from mtyolo.features.views import view_key
from mtyolo.features.writer import extract
from mtyolo.model import Model
from mtyolo.training.records.run import Run
from mtyolo.training.train import train

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"augment": None, "shuffle": False, "seed": 0, "pixels": True}
VIEWS = 3
NAMES = {0: "square", 1: "disc"}


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Six pictures of different shapes, each with a box."""
    random = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(6):
        height, width = (int(side) for side in random.integers(60, 150, 2))
        coarse = random.integers(0, 255, (8, 8, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"data/images/{number}.png"), cv2.resize(coarse, (width, height)))
        (tmp_path / f"data/labels/{number}.txt").write_text("0 0.3 0.4 0.2 0.3\n")
    return DataConfig(path=str(tmp_path / "data"), train="images", val="images", names=NAMES)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(save_weights(tiny_model(seed=1), tmp_path / "teacher.safetensors"))


def student(features: Path | None = None) -> Model:
    torch.manual_seed(0)
    graph = dict(read_yaml(shipped_configs() / "yolov5n.yaml").content)
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    extractor = {"name": "timm/mobilenetv2_035", "weights": "none"}
    config = {"extractor": extractor, "adapters": {"type": "conv"}, "detector": {"graph": graph}}
    return build(config, names=NAMES, stand_in=None if features is None else stand_in(features))


@pytest.fixture
def store(data: DataConfig, tmp_path: Path) -> Path:
    model = student()
    assert model.extractor is not None
    options = ExtractOptions(batch=3, dtype="fp32", views=VIEWS)
    extract(model.extractor.eval(), [load_split(data, "train"), load_split(data, "val")], tmp_path / "s", SIZE, options)
    return tmp_path / "s"


def distilled(
    store: Path, weights: str, data: DataConfig, out: Path, *, stage: Mapping[str, Any] | None = None, **teacher: Any
) -> Run:
    chosen = {"weights": weights, "output": {"scaled": 1.0}, "folder": str(out / "lessons")} | teacher
    plan = {"stages": [{"name": "d", "optimizer": "adamw", "distill": {"teachers": [chosen]}, **(stage or {})}]}
    config = TrainConfig(epochs=8, imgsz=SIZE, batch=3, workers=0, device="cpu", lr=0.003)
    return train(student(store), data, plan=plan, config=config, out=out, features=store, progress=False)


def test_the_pixels_of_a_batch_are_those_that_its_features_were_made_of(store: Path, data: DataConfig) -> None:
    """Views and mirrors too: the extractor gives the stored features again."""
    model, split = student(), load_split(data, "train")
    augment = AugmentConfig(mosaic=1.0, flip=0.5, translate=0.3)
    loader = make_store_loader(FeatureStore.open(store), split, 3, augment=augment, shuffle=True, seed=0, pixels=True)
    assert model.extractor is not None
    extractor, mirrored = model.extractor.eval(), 0
    for batch in loader:
        assert batch.draw is not None
        assert batch.pyramid is not None
        shown = batch.draw(range(3))
        with torch.no_grad():
            again, turned = (extractor(images.float() / 255) for images in (shown, shown.flip(-1)))
        for number in range(3):
            plain = torch.allclose(again[32][number], batch.pyramid[32][number], atol=1e-4)
            back = torch.allclose(turned[32][number].flip(-1), batch.pyramid[32][number], atol=1e-4)
            assert plain or back
            mirrored += back and not plain
    assert mirrored


def test_a_student_learns_from_a_teacher_without_its_extractor(
    store: Path, weights: str, data: DataConfig, tmp_path: Path
) -> None:
    run = distilled(store, weights, data, tmp_path / "run", features=[{"method": "relative", "layers": [4, 6, 9]}])
    losses = [float(row["loss/distill"] or 0) for row in run.results]
    assert losses[-1] < 0.8 * losses[0]


def test_outputs_beside_a_store_are_computed_once_a_view(
    store: Path, weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cache: true, which pixels that vary without end refuse."""
    from mtyolo.distill.teachers import Teacher

    asked: list[int] = []
    lesson, draw = Teacher.lesson, StoreDataset._draw

    def counted(self: Teacher, images: torch.Tensor) -> Any:
        asked.append(len(images))
        return lesson(self, images)

    shown: list[int] = []

    def counted_draw(self: StoreDataset, working: Any, pictures: Any, numbers: Any) -> Any:
        shown.extend(numbers)
        return draw(self, working, pictures, numbers)

    monkeypatch.setattr(Teacher, "lesson", counted)
    monkeypatch.setattr(StoreDataset, "_draw", counted_draw)
    folder = str(tmp_path / "lessons")
    distilled(store, weights, data, tmp_path / "run", cache=True, folder=folder, stage={"views": 4})
    assert sum(asked) == len(shown) == len(list((tmp_path / "lessons").glob("*.safetensors"))) == 6 * VIEWS
    distilled(store, weights, data, tmp_path / "again", cache=True, folder=folder, stage={"views": 4})
    distilled(store, folder, data, tmp_path / "alone", stage={"views": 4})
    assert len(shown) == 6 * VIEWS, "what is on disk is found without its picture"


def test_a_view_has_the_same_name_where_it_has_the_same_pixels(store: Path, data: DataConfig) -> None:
    augment = AugmentConfig(mosaic=0, flip=0.5)
    loader = make_store_loader(
        FeatureStore.open(store), load_split(data, "train"), 3, augment=augment, shuffle=True, seed=0, pixels=True
    )
    pixels: dict[str, set[str]] = {}
    for epoch in range(30):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            for key, shown in zip(batch.keys, keys_of(batch.draw(range(3))), strict=True):
                pixels.setdefault(key, set()).add(shown)
    assert len(pixels) == 6 * VIEWS * 2, "mirrored and not"
    assert all(len(shown) == 1 for shown in pixels.values())
    assert len(set().union(*pixels.values())) == len(pixels)


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"usable": False}, {"views": [View(scale=1, left=2, top=0, mirrored=False)]}]
)
def test_other_files_and_views_have_other_names(change: dict[str, Any], store: Path) -> None:
    row = FeatureStore.open(store).index("train").rows[0]
    plain = view_key(row, 1, SIZE, mirrored=False)
    assert plain == view_key(row.model_copy(), 1, SIZE, mirrored=False)
    assert plain != view_key(row.model_copy(update=change), 1, SIZE, mirrored=False)
    assert plain != view_key(row, 1, SIZE + 32, mirrored=False)
    assert plain != view_key(row.model_copy(update={"name": "other.png"}), 1, SIZE, mirrored=False), "other colours"


def test_outputs_that_are_named_by_pixels_teach_views_of_a_store(
    store: Path, weights: str, data: DataConfig, tmp_path: Path
) -> None:
    """As another program, or an earlier version, writes them; each is drawn once to be found."""
    opened, folder = FeatureStore.open(store), tmp_path / "lessons"
    batch = next(iter(make_store_loader(opened, load_split(data, "train"), 6, **PLAIN)))
    config = TeacherConfig.model_validate(
        {"weights": weights, "output": {"scaled": 1}, "cache": True, "folder": folder}
    )
    expected = open_lessons(config, tiny_model(), SIZE, CPU).lessons.ask(drawn(batch.draw(range(6))))()
    alone = open_lessons(config.model_copy(update={"weights": str(folder), "cache": False}), tiny_model(), SIZE, CPU)
    for lessons in (alone.lessons, open_lessons(config, tiny_model(), SIZE, CPU).lessons):
        draw = Mock(wraps=batch.draw)
        for _ in range(3):
            found = lessons.ask(pictures_of(replace(batch, draw=draw)))()
            assert torch.equal(found.outputs.detect[0], expected.outputs.detect[0])
        draw.assert_called_once_with([0, 1, 2, 3, 4, 5])
    assert len(list(folder.glob("*.safetensors"))) == 6


def test_a_store_that_does_not_say_which_files_it_saw_has_its_pictures_drawn(store: Path, data: DataConfig) -> None:
    opened = FeatureStore.open(store)
    rows = opened.index("train").rows
    rows[1] = rows[1].model_copy(update={"sha256": None})
    pictures = pictures_of(next(iter(make_store_loader(opened, load_split(data, "train"), 3, **PLAIN))))
    assert [key is None for key in pictures.given] == [False, True, False]
    assert pictures.keys == [pictures.given[0], keys_of(pictures.of([1]))[0], pictures.given[2]]


def test_an_unusable_image_is_grey_for_the_teacher(store: Path, data: DataConfig) -> None:
    split: Split = load_split(data, "train")
    open_store = FeatureStore.open(store)
    rows = open_store.index("train").rows
    rows[0] = rows[0].model_copy(update={"usable": False})
    batch = next(iter(make_store_loader(open_store, split, 6, augment=None, shuffle=False, seed=0, pixels=True)))
    assert [bool((image == 114).all()) for image in batch.draw(range(6))] == [row == 0 for row in range(6)]


def test_a_picture_that_has_gone_is_named_with_a_way_out(store: Path, data: DataConfig) -> None:
    split = load_split(data, "train")
    loader = make_store_loader(FeatureStore.open(store), split, 6, augment=None, shuffle=False, seed=0, pixels=True)
    (Path(data.path or "") / "images/4.png").unlink()
    with pytest.raises(
        DataError, match=r"4\.png: .*; teachers look at the pictures behind a feature store: put it back"
    ):
        next(iter(loader)).draw([2, 4])
