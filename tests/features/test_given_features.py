"""Stores written by other programs."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_features import make_images

from mtyolo.api import build, train, validate
from mtyolo.checkpoint import load, save_weights
from mtyolo.cli.main import main
from mtyolo.config.training import TrainConfig
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, StoreError
from mtyolo.extractors.base import GivenFeatures
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.manifest import REPLACED
from mtyolo.features.reader import FeatureStore
from mtyolo.features.replaced import ReplacedLayers, same_picture
from mtyolo.features.shards import Contents, Row, View, read_contents, shard_path, write_shard
from mtyolo.features.verify import verify
from mtyolo.features.views import draw
from mtyolo.features.writer import compute
from mtyolo.model import Model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "write_features.py"
LEVELS, SIZE = {8: 3, 16: 3, 32: 3}, 320


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five images for training, three for validation, with their labels."""
    file = make_images(tmp_path / "data", 5)
    for path in (tmp_path / "data/images/train").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    for kind in ("images", "labels", "labels-pose"):
        shutil.copytree(tmp_path / "data" / kind / "train", tmp_path / "data" / kind / "val")
        for path in sorted((tmp_path / "data" / kind / "val").iterdir())[3:]:
            path.unlink()
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"val": "images/val"}))
    return file


@pytest.fixture
def store(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both splits, as the example writes them."""
    for split in ("train", "val"):
        folder = str(tmp_path / "data/images" / split)
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), folder, str(tmp_path / "store"), split])
        runpy.run_path(str(EXAMPLE))
    return tmp_path / "store"


@pytest.fixture
def options(data: Path, test_data: Path, tmp_path: Path) -> list[str]:
    """A model that takes such features in place of layers of the official YOLOv5n."""
    torch.set_num_threads(1)
    content = {
        "extractor": {"name": "features", "levels": LEVELS},
        "detector": {"graph": "yolov5n.yaml", "weights": str(test_data / "weights" / "yolov5n.pt")},
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))
    return ["--model", str(tmp_path / "model.yaml"), "--data", str(data), "--device", "cpu"]


class GivenModel:
    """Stands for a model whose file says `name: features`."""

    extractor = GivenFeatures(LEVELS)


def reverse_rows(store: Path, split: str) -> None:
    path = shard_path(store, split, 0)
    rows, tensors = read_contents(path).rows[::-1], load_file(path)
    write_shard(path, {name: tensor.flip(0) for name, tensor in tensors.items()}, Contents(rows=rows))


def test_the_example_writes_a_store_that_verifies_and_loads(store: Path, data: Path) -> None:
    split = load_split(data, "train")
    assert verify(store, [split]) == []
    found = FeatureStore.open(store)
    found.check(GivenModel(), split, SIZE)
    batch = next(iter(make_store_loader(found, split, 5, augment=None, shuffle=False, seed=0)))
    assert batch.pyramid is not None
    assert {stride: tuple(level.shape) for stride, level in batch.pyramid.items()} == {
        8: (5, 3, 40, 40),
        16: (5, 3, 20, 20),
        32: (5, 3, 10, 10),
    }
    assert torch.equal(batch.targets.image_index, torch.arange(5))


def test_the_example_keeps_what_other_splits_say(store: Path) -> None:
    assert json.loads((store / "manifest.json").read_text())["splits"] == {"train": 5, "val": 3}
    found = FeatureStore.open(store)
    assert [len(found.index(split).rows) for split in ("train", "val")] == [5, 3]


def test_the_example_is_as_short_as_promised() -> None:
    body = EXAMPLE.read_text().split('"""')[2].splitlines()
    statements = [line for line in body if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) <= 20


def test_a_manifest_that_promises_other_tensors_is_caught(store: Path, data: Path) -> None:
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"dtype": "fp32"}))
    loader = make_store_loader(
        FeatureStore.open(store), load_split(data, "train"), 5, augment=None, shuffle=False, seed=0
    )
    with pytest.raises(StoreError, match=r"tensor 8 is torch\.float16 .* the manifest says torch\.float32"):
        next(iter(loader))
    path.write_text(json.dumps(manifest | {"splits": {"train": 6}, "images_per_shard": 6}))
    with pytest.raises(StoreError, match="have 5 images, the manifest says 6"):
        FeatureStore.open(store).index("train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda level: level.permute(0, 2, 3, 1), r"tensor 16 .*channels come last there: store features\.permute"),
        (lambda level: level[..., :-1], r"tensor 16 is torch\.float16 \[5, 3, 20, 19\], the manifest says .*20, 20\]"),
        (lambda level: level[:, :2], r"\[5, 2, 20, 20\], the manifest says torch\.float16 \[5, 3, 20, 20\]"),
        (lambda level: level.float(), r"torch\.float32 .*, the manifest says torch\.float16"),
        (lambda level: level[:3], r"\[3, 3, 20, 20\], the manifest says"),
        (lambda level: level / 0, r"the features of 5 of 5 images are not finite, first of 0000\.jpg"),
        (lambda level: level.index_fill(0, torch.tensor([3]), np.nan), r"of 1 of 5 images .* first of 0003\.jpg"),
    ],
)
def test_verify_compares_tensors_with_the_manifest(
    store: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    path = shard_path(store, "train", 0)
    contents, tensors = read_contents(path), load_file(path)
    tensors["16"] = change(tensors["16"]).contiguous()
    write_shard(path, tensors, contents)
    (problem,) = verify(store)
    assert re.search(rf"00000\.safetensors: .*{words}.*; write it again with the program that made this store", problem)


def test_verify_compares_the_number_of_images_with_the_manifest(store: Path) -> None:
    said_of(store, splits={"train": 6, "val": 3}, images_per_shard=6)
    (problem,) = verify(store)
    assert "the shards of train have 5 images, the manifest says 6" in problem


def test_splits_that_the_data_does_not_have_are_verified_without_it(
    store: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store / "train", store / "new")
    said_of(store, splits={"train": 5, "val": 3, "new": 5, "test": 5})
    shutil.copytree(store / "train", store / "test")
    assert main(["features", "verify", str(store), "--data", str(data)]) == 0
    shown = capsys.readouterr()
    assert f"new, test: {data} has no such split, so verified without its images" in shown.err
    assert "4 shards read, 0 problem(s)" in shown.out
    (data.parent / "images/train/0001.jpg").write_bytes((data.parent / "images/train/0002.jpg").read_bytes())
    (store / "new/00000.safetensors").unlink()
    assert main(["features", "verify", str(store), "--data", str(data)]) == 2
    assert "new/00000.safetensors: missing" in (shown := capsys.readouterr().out)
    assert "0001.jpg: " in shown


def said_of(path: Path, **manifest: object) -> None:
    """Change what a store says of itself."""
    path = path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))


def test_what_another_program_made_is_mended_by_that_program(store: Path, data: Path, options: list[str]) -> None:
    """mtyolo would answer that there is nothing to extract."""
    split, shard = load_split(data, "train"), shard_path(store, "train", 0)
    whole, its_program = shard.read_bytes(), "with the program that made this store"

    def read() -> None:
        next(iter(make_store_loader(FeatureStore.open(store), split, 5, augment=None, shuffle=False, seed=0)))

    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"the checksum differs.*{its_program}"):
        read()
    shard.write_bytes(whole.replace(b'"height', b'"heavty', 1).replace(b'\\"height', b'\\"heavty', 1))
    with pytest.raises(StoreError, match=f"rows.0.height: Field required.*{its_program}"):
        read()
    shard.write_bytes(whole)
    with pytest.raises(StoreError, match=f"has no split test, only train, val; write it there {its_program}"):
        FeatureStore.open(store).index("test")
    with pytest.raises(StoreError, match="made at 320 px, the model asks for 640 px; give --imgsz 320"):
        FeatureStore.open(store).check(GivenModel(), split, 640)
    said_of(store, dtype="fp32")
    with pytest.raises(StoreError, match=rf"the manifest says torch\.float32.*{its_program}"):
        read()
    said_of(store, levels={8: 4, 16: 3, 32: 3})
    with pytest.raises(StoreError, match="let the program that made these write them into another folder"):
        FeatureStore.open(store).check(GivenModel(), split, SIZE)
    with pytest.raises(StoreError, match=r"has levels .*; say so under extractor\.levels"):
        build(options[1], data=data, features=store)


@pytest.fixture
def other(store: Path, tmp_path: Path) -> Path:
    """The same store, said to be of another program."""
    shutil.copytree(store, tmp_path / "other")
    said_of(tmp_path / "other", extractor={"name": "another-net"})
    return tmp_path / "other"


def trained(options: list[str], store: Path, out: Path, *more: str) -> int:
    small = ["--epochs", "1", "--batch", "4", "--workers", "0", "--out", str(out), "--features", str(store)]
    return main(["train", *options, *small, *more])


def test_weights_remember_what_made_the_features_they_were_trained_on(
    store: Path, other: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(options, store, tmp_path / "run") == 0
    best = tmp_path / "run/best.safetensors"
    judge = ["val", "--model", str(best), *options[2:], "--features"]
    assert main([*judge, str(store)]) == 0
    capsys.readouterr()
    assert main([*judge, str(other)]) == 2
    refusal = "other: made with the extractor another-net, not mine; give a store of the features that the model has"
    assert refusal in " ".join(capsys.readouterr().err.split())
    assert trained([*options, "--weights", str(best)], other, tmp_path / "second") == 2
    assert refusal in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(tmp_path / "run"), "--features", str(other)]) == 2
    assert refusal in " ".join(capsys.readouterr().err.split())
    with safe_open(best, framework="pt") as file:
        assert json.loads(file.metadata()["extractor"]) == {"name": "mine"}


def test_a_model_that_met_its_features_in_training_remembers_them_too(
    store: Path, other: Path, options: list[str], data: Path, tmp_path: Path
) -> None:
    model = build(options[1], data=data)
    config = TrainConfig(epochs=1, batch=4, workers=0, device="cpu")
    run = train(model, data, config=config, out=tmp_path / "run", features=store, progress=False)
    with pytest.raises(StoreError, match="another-net, not mine"):
        validate(run.best, data, features=other)
    with pytest.raises(ConfigError, match="batch=0: expected a whole number from 1"):
        validate(run.best, data, features=store, batch=0)


def test_weights_that_do_not_say_what_made_their_features_take_any(
    store: Path, other: Path, options: list[str], data: Path, tmp_path: Path
) -> None:
    """As files of earlier versions."""
    model = build(options[1], data=data)
    model.config = model.config.with_unknown(())  # as after a training
    path = save_weights(model, tmp_path / "earlier.safetensors")
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["extractor"]) == {"name": "features"}
    assert isinstance(load(path), Model)
    for directory in (store, other):
        assert validate(path, data, features=directory, batch=4).tasks


def test_a_short_run_on_features_that_are_no_numbers_is_no_success(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shard_path(store, "train", 0)
    rows, tensors = read_contents(path).rows, load_file(path)
    tensors["16"][:] = float("nan")
    write_shard(path, tensors, Contents(rows=rows))
    assert trained(options, store, tmp_path / "run", "--no-augment") == 2
    assert "batches of a stage were skipped" in capsys.readouterr().err.replace("\n", " ")


def test_features_that_are_not_finite_are_said_to_be_the_stores(
    store: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shard_path(store, "train", 0)
    rows, tensors = read_contents(path).rows, load_file(path)
    tensors["16"][2, 0, 3, 3] = float("nan")
    write_shard(path, tensors, Contents(rows=rows))
    monkeypatch.setattr("mtyolo.training.nonfinite.MOST_IN_A_ROW", 1)
    with caplog.at_level("WARNING", "mtyolo"):
        assert trained(options, store, tmp_path / "run", "--no-augment") == 2
    said = f"{store}: the features of 1 of "
    assert any(said in line and "0002.jpg: skipped the batch of" in line for line in caplog.messages)
    assert said in (shown := " ".join(capsys.readouterr().err.split()))
    assert "write it again with the program that made this store" in shown


def test_adapters_are_aligned_from_features_of_another_program(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reverse_rows(store, "train")
    features = {path: path.read_bytes() for path in store.rglob("*.*") if path.is_file()}
    train = ["train", *options, "--features", str(store), "--imgsz", str(SIZE), "--plan", "align", "--epochs", "1"]
    train += ["--batch", "4", "--workers", "0", "--out", str(tmp_path / "run")]
    assert main(train) == 2
    assert "run mtyolo extract --model" in capsys.readouterr().err
    assert main(["extract", *options, "--out", str(store), "--targets"]) == 0
    assert "8 images in 3 shards written" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in features.items())
    assert main(["features", "verify", str(store), "--data", options[3]]) == 0
    assert main(train) == 0
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_targets_are_in_the_rows_of_the_features(store: Path, options: list[str]) -> None:
    reverse_rows(store, "train")
    assert main(["extract", *options, "--out", str(store), "--targets", "--splits", "train", "--dtype", "fp32"]) == 0
    targets = FeatureStore.open(store / REPLACED)
    assert targets.manifest.splits == {"train": 5}
    assert [row.name for row in targets.index("train").rows] == [f"{number:04d}.jpg" for number in range(4, -1, -1)]
    layers, records = ReplacedLayers(build(options[1], data=options[3])), load_split(options[3], "train").records
    for row, record in enumerate(records[::-1]):
        image = draw(record, record.path.name, SIZE, 1, mirror=False).images
        expected, found = compute(layers, torch.from_numpy(image), "cpu"), targets.read("train", [[targets.whole(row)]])
        assert all(torch.allclose(found[stride], level, atol=1e-5) for stride, level in expected.items())


def refused(options: list[str], store: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["extract", *options, "--out", str(store), *more]) == 2
    assert not (store / REPLACED).exists()
    return capsys.readouterr().err


def test_what_can_not_be_made_is_said_in_one_sentence(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "come from elsewhere, so there is nothing to extract; --targets alone" in refused(options, store, capsys)
    assert "nothing to extract or time" in refused(options, store, capsys, "--targets", "--dry-run")
    assert "--views 2: features that come" in refused(options, store, capsys, "--targets", "--views", "2")
    said = refused(options, store, capsys, "--targets", "--splits", "test")
    assert "--splits test: the store of features has train, val; write it there first" in said
    said = refused(options, tmp_path / "nothing", capsys, "--targets")
    assert "no feature store (no manifest.json), and this model's features are made elsewhere" in said
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"views": 2}))
    assert "has 2 views of an image, and only plain ones" in refused(options, store, capsys, "--targets")
    path.write_text(json.dumps(manifest))
    said = refused(options, store, capsys, "--targets", "--imgsz", "160")
    assert "made at 320 px, the model asks for 160 px; give --imgsz 320, or make features of 160 px" in said
    path.write_text(json.dumps(manifest | {"levels": {8: 4, 16: 3, 32: 3}}))
    assert "has levels (stride: channels) {8: 4" in refused(options, store, capsys, "--targets")


def test_other_images_than_those_of_the_features_are_refused(
    store: Path, options: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.parent / "images/train"
    image = (folder / "0003.jpg").read_bytes()
    (folder / "0003.jpg").unlink()
    said = refused(options, store, capsys, "--targets")
    assert "1 of 5 images of train are not in the data, first 0003.jpg; --targets needs the data" in said
    (folder / "more").mkdir()
    for path in (folder / "0003.jpg", folder / "more/0003.jpg"):
        path.write_bytes(image)
    assert "2 images of train are called 0003.jpg" in refused(options, store, capsys, "--targets")
    (folder / "more/0003.jpg").unlink()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "0009.jpg")
    said = refused(options, store, capsys, "--targets")
    assert "0009.jpg; write these features again with the program that made them" in said


def row(name: str, height: int = 40, **known: object) -> Row:
    return Row.model_validate({"name": name, "height": height, "width": 50, **known})


def test_pictures_are_compared_as_far_as_both_know_them() -> None:
    known = row("a/1.jpg", sha256="0" * 64)
    assert same_picture(row("1.jpg"), known)
    assert same_picture(known, row("1.jpg"))
    assert same_picture(known, known)
    assert not same_picture(row("11.jpg"), row("1.jpg"))
    assert not same_picture(row("b/1.jpg"), known)
    assert not same_picture(row("1.jpg", height=41), known)
    assert not same_picture(row("1.jpg", sha256="1" * 64), known)
    moved = View(scale=1.0, left=0.0, top=0.0, mirrored=True)
    assert not same_picture(row("1.jpg", views=[moved]), known)
