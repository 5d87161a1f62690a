"""Features that a program has for pictures, saved through mtyolo: `save_features`, and the example of .npy files."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from tiny_features import make_images

from mtyolo.api import build, train
from mtyolo.config.training import TrainConfig
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, MtyoloError, StoreError
from mtyolo.features import planning
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.features.verify import verify
from mtyolo.features.writing import save_features
from mtyolo.prediction.predict import predict

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "npy_features.py"
SIZE, CHANNELS = 64, {8: 4, 16: 6, 32: 8}
Made = dict[int, NDArray[np.float32]]
Asked = Callable[[Path], Mapping[int, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data", 5)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_IMAGES", 2)


def made(picture: Path) -> Made:
    """Of a picture's name alone, so that each has its own."""
    random = np.random.default_rng(list(picture.name.encode()))
    return {
        stride: random.normal(size=(channels, SIZE // stride, SIZE // stride)).astype(np.float32)
        for stride, channels in CHANNELS.items()
    }


def save(
    store: Path, data: Path, features: Callable[[Path], Mapping[int, Any]] = made, made_by: str = "mine"
) -> object:
    return save_features(store, data, features, size=SIZE, made_by=made_by)


def bytes_of(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small_shards")
def test_what_is_saved_is_read_picture_by_picture(tmp_path: Path, data: Path) -> None:
    seen: list[int] = []
    save_features(tmp_path / "store", data, made, size=SIZE, made_by="mine", report=seen.append)
    split, store = load_split(data, "train"), FeatureStore.open(tmp_path / "store")
    assert sum(seen) == 5
    assert [len(list((tmp_path / "store/train").iterdir())), store.manifest.images_per_shard] == [3, 2]
    assert verify(tmp_path / "store", [split]) == []
    batch = next(iter(make_store_loader(store, split, 5, augment=None, shuffle=False, seed=0)))
    assert batch.pyramid is not None
    for number, record in enumerate(split.records):
        for stride, level in made(record.path).items():
            found = batch.pyramid[stride][number].float().numpy()
            np.testing.assert_allclose(found, level, atol=2e-3)


@pytest.mark.usefixtures("small_shards")
def test_a_call_that_was_stopped_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    asked: list[str] = []

    def stopped(picture: Path) -> Made:
        asked.append(picture.stem)
        if asked.count("0003"):
            raise KeyboardInterrupt
        return made(picture)

    def noted(picture: Path) -> Made:
        again.append(picture.stem)
        return made(picture)

    again: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "store", data, stopped)
    assert save(tmp_path / "store", data, noted) == (3, 2, 1)
    assert again == ["0000", "0002", "0003", "0004"]  # the first one, which tells channels, and what is not there
    save(tmp_path / "whole", data)
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "whole")


def changed(stride: int, level: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Path], Made]:
    """Features that are wrong for the picture 0002 alone."""

    def features(picture: Path) -> Made:
        found = made(picture)
        return found | {stride: level(found[stride])} if picture.stem == "0002" else found

    return features


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (
            changed(16, lambda level: level[:, :3]),
            r"at stride 16 are \[6, 3, 4\], not \[channels, 4, 4\] as for 64 pixels",
        ),
        (
            changed(16, lambda level: level.transpose(1, 2, 0)),
            r"\[4, 4, 6\].*channels come last there: give them first",
        ),
        (changed(16, lambda level: level[None]), r"of \[1, 6, 4, 4\], not real values of \[channels, h, w\]"),
        (changed(16, lambda level: level[:3]), "3 channels at stride 16, the store has 6"),
        (changed(16, lambda level: level[:0]), r"of \[0, 4, 4\], not real values"),
        (changed(16, lambda level: level * 1j), r"torch.complex\d+ of .*, not real values"),
        (changed(16, lambda level: level.astype(object)), "features at stride 16 are no tensor: "),
        (changed(16, lambda level: None), "features at stride 16 are no tensor: "),
        (changed(16, lambda level: level * np.nan), "stride 16: the features hold values up to nan"),
        (changed(16, lambda level: level * 1e6), "which fp16 can not store"),
    ],
)
def test_features_that_do_not_fit_are_named_with_their_picture(
    tmp_path: Path, data: Path, features: Callable[[Path], Made], said: str
) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        save(tmp_path / "store", data, features)
    assert "0002.png: " in str(caught.value)


def test_levels_of_one_picture_that_others_lack(tmp_path: Path, data: Path) -> None:
    def features(picture: Path) -> Made:
        return {8: made(picture)[8]} if picture.stem == "0002" else made(picture)

    with pytest.raises(StoreError, match=r"0002.png: has features at strides \[8\], others at \[8, 16, 32\]"):
        save(tmp_path / "store", data, features)


@pytest.mark.parametrize("given", [None, {}, [np.zeros((4, 8, 8))], {"8": np.zeros((4, 8, 8))}])
def test_what_is_no_pyramid(tmp_path: Path, data: Path, given: object) -> None:
    def features(picture: Path) -> Made:
        return given if picture.stem == "0002" else made(picture)  # type: ignore[return-value]

    with pytest.raises(StoreError, match=r"0002.png: its features are not \{stride: \[channels, h, w\]\}, but "):
        save(tmp_path / "store", data, features)


def test_a_mistake_of_the_program_is_named_with_its_picture(tmp_path: Path, data: Path) -> None:
    def features(picture: Path) -> Made:
        return {8: np.load(tmp_path / f"{picture.stem}.npy")}

    with pytest.raises(StoreError, match=r"0000.png: its features can not be had: FileNotFoundError: ") as caught:
        save(tmp_path / "store", data, features)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_arrays_of_any_order_are_taken(tmp_path: Path, data: Path) -> None:
    def features(picture: Path) -> Made:
        found = made(picture)
        found[8] = found[8][:, ::-1, ::-1][:, ::-1, ::-1].astype(">f4")
        found[16].flags.writeable = False
        return found

    save(tmp_path / "store", data, features)
    save(tmp_path / "plain", data)
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "plain")


def test_features_that_come_in_a_row_are_asked_for_once(tmp_path: Path, data: Path) -> None:
    row = iter([made(record.path) for record in load_split(data, "train").records])
    save(tmp_path / "store", data, lambda picture: next(row))
    save(tmp_path / "plain", data)
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "plain")
    with pytest.raises(StoreError, match="its features can not be had: StopIteration"):
        save(tmp_path / "store", data, lambda picture: next(row))


def test_other_pictures_do_not_take_the_place_of_a_split(tmp_path: Path, data: Path) -> None:
    save(tmp_path / "store", data)
    before = bytes_of(tmp_path / "store")
    make_images(tmp_path / "others", 3)
    for picture in (tmp_path / "others/images/train").iterdir():
        Image.new("RGB", (70, 50)).save(picture)
    with pytest.raises(StoreError, match="its split train holds 5 other images, which would be lost"):
        save(tmp_path / "store", tmp_path / "others/images/train")
    assert bytes_of(tmp_path / "store") == before


def test_pictures_that_can_not_be_read_are_named(tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data/images/train/0002.png").write_bytes(b"no picture")
    assert save(tmp_path / "store", data) == (4, 1, 0)
    assert "0002.png" in caplog.text


def test_one_at_a_time_writes_into_a_folder(tmp_path: Path, data: Path) -> None:
    def features(picture: Path) -> Made:
        with pytest.raises(MtyoloError, match="another process is writing there; wait for it"):
            save(tmp_path / "store", data)
        return made(picture)

    save(tmp_path / "store", data, features)
    assert verify(tmp_path / "store", [load_split(data, "train")]) == []


def test_a_store_in_place_of_a_file(tmp_path: Path, data: Path) -> None:
    with pytest.raises(MtyoloError, match="no folder can be made there: File exists; name another"):
        save(data, data)


@pytest.mark.parametrize("wrong", [{"made_by": 3}, {"made_by": {"version": "3"}}, {"size": "64"}, {"dtype": "float16"}])
def test_wrong_arguments(tmp_path: Path, data: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"made_by: |image size '64': expected whole pixels|dtype: "):
        save_features(tmp_path / "store", data, made, **{"size": SIZE, "made_by": "mine"} | wrong)


def test_strides_that_do_not_divide_each_other(tmp_path: Path, data: Path) -> None:
    with pytest.raises(StoreError, match="features at stride 12, which does not divide the largest, 32"):
        save(tmp_path / "store", data, lambda picture: made(picture) | {12: made(picture)[8]})


def test_a_size_that_strides_do_not_divide(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="image size 80: expected a multiple of the largest stride, 32; use 64"):
        save_features(tmp_path / "store", data, made, size=80, made_by="mine")


def test_a_name_that_says_nothing(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="say by a name what made these features"):
        save(tmp_path / "store", data, made_by="features")


def test_other_features_do_not_mix(tmp_path: Path, data: Path) -> None:
    save(tmp_path / "store", data)
    before = bytes_of(tmp_path / "store")
    with pytest.raises(StoreError, match=r"made with the extractor mine, not another\); give another folder"):
        save(tmp_path / "store", data, made_by="another")
    assert bytes_of(tmp_path / "store") == before


def test_a_first_attempt_that_failed_keeps_no_other_out(tmp_path: Path, data: Path) -> None:
    with pytest.raises(StoreError, match="3 channels"):
        save(tmp_path / "store", data, changed(16, lambda level: level[:3]))
    assert save(tmp_path / "store", data, made_by="another") == (5, 2, 0)
    assert verify(tmp_path / "store", [load_split(data, "train")]) == []


def test_damage_is_mended_by_the_program_that_made_them(tmp_path: Path, data: Path) -> None:
    save(tmp_path / "store", data)
    shard = tmp_path / "store/train/00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "with the program that made this store" in verify(tmp_path / "store", [])[0]
    assert save(tmp_path / "store", data) == (4, 1, 1)
    assert verify(tmp_path / "store", [load_split(data, "train")]) == []


def test_npy_files_train_a_model_which_predicts_from_those_of_new_pictures(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for picture in (tmp_path / "data/images/train").iterdir():
        for stride, level in made(picture).items():
            (tmp_path / "arrays" / str(stride)).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "arrays" / str(stride) / f"{picture.stem}.npy", level)
    for source, store in ((data, "store"), (tmp_path / "data/images/train", "theirs")):
        arguments = [str(EXAMPLE), str(source), str(tmp_path / "arrays"), str(tmp_path / store)]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(EXAMPLE))
    assert capsys.readouterr().out.count("5 pictures written, 0 shards were there") == 2
    config = {"extractor": {"name": "features", "levels": CHANNELS}, "detector": {"graph": "yolov5n.yaml"}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    model = build(tmp_path / "model.yaml", data=data, features=tmp_path / "store")
    settings = TrainConfig(epochs=1, batch=5, device="cpu", workers=0)
    run = train(model, data, config=settings, features=tmp_path / "store", out=tmp_path / "run", progress=False)
    found = predict(run.best, tmp_path / "data/images/train", features=tmp_path / "theirs")
    assert len(found) == 5
