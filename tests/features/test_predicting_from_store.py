"""Predicting on pictures whose features are in a store, without the extractor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_features import SIZE, TinyExtractor

from mtyolo.api import build, validate
from mtyolo.checkpoint import save_weights
from mtyolo.cli.main import main
from mtyolo.config.model import shipped_configs
from mtyolo.data.records import Problems, Split
from mtyolo.errors import DataError, StoreError
from mtyolo.evaluation.pictures import comparison
from mtyolo.features.reader import FeatureStore
from mtyolo.features.shards import Contents, read_contents, shard_path, write_shard
from mtyolo.model import Model
from mtyolo.prediction.predict import predict

MakeStore = Callable[..., FeatureStore]
LEVELS = {level.stride: level.channels for level in TinyExtractor.levels}


def make_model(data: Path, extractor: dict[str, object]) -> Model:
    """Random, and so sure of itself that it finds things."""
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    config = {
        "extractor": extractor,
        "detector": {"graph": graph | {"width_multiple": 0.05, "depth_multiple": 0.1}},
        "tasks": {"detect": {}, "keypoint": {}},
    }
    model = build(config, data=data, extractors={"tiny": TinyExtractor})
    torch.manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("extractor."):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def given(images: Path) -> Model:
    """A model whose file says `name: features`: there is no extractor to run."""
    return make_model(images, {"name": "features", "levels": LEVELS})


@pytest.fixture
def folder(split: Split) -> Path:
    return split.records[0].path.parent


def test_detections_from_a_store_are_those_from_pixels(
    images: Path, given: Model, folder: Path, make_store: MakeStore
) -> None:
    store = make_store(dtype="fp32").directory
    online = predict(make_model(images, {"name": "tiny"}), folder, size=SIZE, confidence=0.1, batch=3)
    stored = predict(given, folder, features=store, confidence=0.1, batch=4)
    assert len(online) == 10
    assert sum(len(result) for result in online) > 10
    for one, other in zip(online, stored, strict=True):
        assert other.path == one.path
        assert other.detections.size == one.detections.size
        torch.testing.assert_close(other.boxes, one.boxes, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(other.keypoints, one.keypoints, atol=1e-2, rtol=1e-3)
        assert (other.draw() == one.draw()).mean() > 0.99


def test_weights_predict_from_a_store_without_the_extractor_that_they_name(
    images: Path, folder: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    weights = save_weights(make_model(images, {"name": "tiny"}), tmp_path / "tiny.safetensors")
    assert len(predict(weights, folder, features=make_store().directory)) == 10


def test_the_command_draws_on_the_pictures_of_a_store(
    given: Model, folder: Path, make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_weights(given, tmp_path / "given.safetensors")
    arguments = ["predict", "--model", str(weights), "--source", str(folder), "--out", str(tmp_path / "drawn")]
    assert main([*arguments, "--features", str(make_store().directory)]) == 0
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 10
    capsys.readouterr()
    assert main(arguments) == 2
    assert "takes features, not images: give pyramid={8: …, 16: …, 32: …}, name a feature store" in (
        capsys.readouterr().err
    )


def test_what_a_store_does_not_know_is_refused_and_what_can_not_be_read_is_counted(
    given: Model, folder: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store().directory
    with pytest.raises(DataError, match=r"none of 1 images .*other\.png: is not in .*store; predict without features"):
        predict(given, shutil.copy(folder / "0000.png", tmp_path / "other.png"), features=store)
    with pytest.raises(StoreError, match="name files or folders, not arrays"):
        predict(given, np.zeros((50, 50, 3), np.uint8), features=store)
    shutil.copy(folder / "0001.png", folder / "0000.png")
    with pytest.raises(DataError, match=r"0000\.png: changed after its features were made"):
        predict(given, folder / "0000.png", features=store)
    (folder / "0002.png").write_bytes(b"")
    problems = Problems()
    found = predict(given, folder, features=store, problems=problems)
    assert [result.path.name for result in found if result.path] == ["0001.png", *(f"000{n}.png" for n in range(3, 10))]
    assert problems.counts == {"image without features": 1, "unreadable image": 1}


def test_a_picture_that_could_not_be_read_when_its_features_were_made_is_not_predicted(
    given: Model, folder: Path, make_store: MakeStore
) -> None:
    store = make_store().directory
    path = shard_path(store, "train", 0)
    rows, tensors = read_contents(path).rows, load_file(path)
    rows[3] = rows[3].model_copy(update={"usable": False})
    write_shard(path, tensors, Contents(rows=rows))
    problems = Problems()
    assert len(predict(given, folder, features=store, problems=problems)) == 9
    (problem,) = problems.examples["unreadable image"]
    assert str(problem) == f"{folder}/0003.png: could not be read when its features were made"


def test_a_damaged_store_is_not_the_pictures_fault(given: Model, folder: Path, make_store: MakeStore) -> None:
    store = make_store().directory
    for shard in store.rglob("*.safetensors"):
        shard.write_bytes(b"")
    problems = Problems()
    with pytest.raises(StoreError):
        predict(given, folder, features=store, problems=problems)
    assert not problems.counts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_where_they_are_judged_and_predicted_from(
    value: float, images: Path, split: Split, given: Model, folder: Path, make_store: MakeStore
) -> None:
    store = make_store().directory
    path = shard_path(store, "train", 0)
    contents, tensors = read_contents(path), load_file(path)
    tensors["16"][2, 0, 1, 1] = value
    write_shard(path, tensors, contents)
    said = r"store: the features of 1 of 4 images are not finite, first of .*0002\.png; run mtyolo extract again"
    with pytest.raises(StoreError, match=said):
        predict(given, folder, features=store, batch=4)
    with pytest.raises(StoreError, match=said):
        validate(given, images, split="train", features=store, batch=4)
    with pytest.raises(StoreError, match=r"the features of 1 of 6 images .*0002\.png"):
        comparison(given, replace(split, records=split.records[:6]), features=store)


def test_an_extractor_that_gives_no_numbers_is_named_where_it_is_judged_and_predicts(
    images: Path, folder: Path
) -> None:
    model = make_model(images, {"name": "tiny"})
    assert model.extractor is not None
    model.extractor.convolutions[1].bias.data[0] = float("nan")
    said = r"extractor tiny: the features of 4 of 4 images are not finite, first of .*0000\.png; mend the extractor"
    with pytest.raises(DataError, match=said):
        predict(model, folder, size=SIZE, batch=4)
    with pytest.raises(DataError, match=said):
        validate(model, images, split="train", size=SIZE, batch=4)


def test_features_of_another_extractor_are_refused(
    images: Path, split: Split, folder: Path, make_store: MakeStore
) -> None:
    model, store = make_model(images, {"name": "tiny", "arguments": {"seed": 1}}), make_store().directory
    with pytest.raises(StoreError, match="seed 0"):
        predict(model, folder, features=store)
    with pytest.raises(StoreError, match="seed 0"):
        comparison(model, split, features=store)
    with pytest.raises(StoreError, match="has no extractor, so it takes images and not features"):
        predict(build("yolov5n.yaml"), folder, features=store)


def test_pictures_of_one_name_in_two_splits_are_told_apart_by_their_folder(
    given: Model, folder: Path, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(dtype="fp32")
    expected = predict(given, folder / "0000.png", features=store.directory, confidence=0.1)[0]
    other, both = tmp_path / "0000.png", tmp_path / "val/train/0000.png"
    both.parent.mkdir(parents=True)
    _add_split(store.directory, hashes=True)
    assert len(predict(given, shutil.copy(folder / "0000.png", other), features=store.directory)) == 1, "by its content"
    _add_split(store.directory, hashes=False)
    for path in (other, shutil.copy(other, both)):
        with pytest.raises(DataError, match=r"has it in train and val; give these pictures different names"):
            predict(given, path, features=store.directory)
    monkeypatch.chdir(folder)
    (found,) = predict(given, "0000.png", features=store.directory, confidence=0.1)
    assert torch.equal(found.boxes, expected.boxes)


def _add_split(store: Path, *, hashes: bool) -> None:
    """As another program writes it: the first shard once more, as val, with its pictures' features all zero."""
    manifest = json.loads((store / "manifest.json").read_text())
    rows = [
        row if hashes else row.model_copy(update={"sha256": None, "length": None})
        for row in read_contents(shard_path(store, "train", 0)).rows
    ]
    (store / "val").mkdir(exist_ok=True)
    tensors = {name: tensor * 0 for name, tensor in load_file(shard_path(store, "train", 0)).items()}
    write_shard(shard_path(store, "val", 0), tensors, Contents(rows=rows))
    manifest["splits"]["val"] = len(rows)
    (store / "manifest.json").write_text(json.dumps(manifest))
