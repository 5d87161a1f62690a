"""Alignment from a store: the outputs of the replaced layers are stored beside the features that replace them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_features import make_images, own_extractor_model, write_own_extractor

from mtyolo.adapters.statistics import moments
from mtyolo.api import build, train
from mtyolo.cli.main import main
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, StoreError
from mtyolo.features.augment import loader_augment
from mtyolo.features.dataset import StoreDataset, make_store_loader
from mtyolo.features.manifest import REPLACED
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model
from mtyolo.training.batches.stored import matching_batches

SIZE = 64
STAGE = {"name": "align", "objective": "align", "train": ["adapters"], "optimizer": "adamw", "lr": 0.002}
CONFIG = TrainConfig(epochs=2, imgsz=SIZE, batch=4, workers=0, device="cpu", warmup_epochs=0, val_every=2)


@pytest.fixture
def files(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A model file with an extractor of one's own before the official YOLOv5n, and ten images."""
    torch.set_num_threads(1)
    data = make_images(tmp_path / "data", 10)
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump(content | {"val": content["train"]}))
    write_own_extractor(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = str(test_data / "weights" / "yolov5n.pt")
    model = tmp_path / "model.yaml"
    own = own_extractor_model()
    model.write_text(yaml.safe_dump(own | {"detector": {"graph": "yolov5n.yaml", "weights": weights}}))
    yield model, data
    sys.modules.pop("own_extractor", None)


def extract(files: tuple[Path, Path], out: Path, *options: str) -> Path:
    model, data = files
    names = ["--model", str(model), "--data", str(data), "--imgsz", str(SIZE), "--out", str(out), "--device", "cpu"]
    assert main(["extract", *names, "--trust", *options]) == 0
    return out


def make(files: tuple[Path, Path], **options: Any) -> Model:
    torch.manual_seed(0)
    return build(str(files[0]), data=files[1], trust=True, **options)


def align(files: tuple[Path, Path], out: Path, store: Path | None = None, **stage: Any) -> list[dict[str, Any]]:
    model = make(files) if store is None else make(files, features=store)
    plan = {"stages": [STAGE | {"augment": False} | stage]}
    return train(model, files[1], plan=plan, config=CONFIG, out=out, features=store, progress=False).results


@pytest.mark.parametrize("arguments", [{}, {"fused": 1.0, "maps": 1.0}])
def test_errors_from_the_store_are_those_of_aligning_online(
    files: tuple[Path, Path], tmp_path: Path, arguments: dict[str, float]
) -> None:
    store = extract(files, tmp_path / "store", "--targets", "--dtype", "fp32")
    online = align(files, tmp_path / "online", arguments=arguments)
    stored = align(files, tmp_path / "stored", store, arguments=arguments)
    for one, other in zip(online[1:], stored[1:], strict=True):
        errors = {name: value for name, value in one.items() if name.startswith("loss/align")}
        assert len(errors) == (10 if arguments else 4)
        assert {name: other[name] for name in errors} == pytest.approx(errors, rel=1e-5, abs=1e-5)


def test_held_out_errors_from_the_store_are_those_online(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store", "--targets", "--dtype", "fp32")
    online, stored = align(files, tmp_path / "online"), align(files, tmp_path / "stored", store)
    errors = {name: value for name, value in online[-1].items() if name.startswith("val/align")}
    assert len(errors) == 4
    assert {name: stored[-1][name] for name in errors} == pytest.approx(errors, rel=1e-5, abs=1e-5)


def test_targets_for_validation_that_are_not_whole_are_said_before_training(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    store = extract(files, tmp_path / "store", "--targets", "--dtype", "fp32")
    shutil.rmtree(store / REPLACED / "val")
    with pytest.raises(StoreError, match="val"):
        align(files, tmp_path / "run", store)
    assert not (tmp_path / "run" / "results.csv").exists()


def test_without_targets_for_validation_nothing_is_held_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store", "--dtype", "fp32")
    extract(files, store, "--targets", "--dtype", "fp32", "--splits", "train")
    rows = align(files, tmp_path / "run", store)
    assert "loss/align" in rows[-1]
    assert not any(name.startswith("val/") for row in rows for name in row)


def test_alignment_beside_labels_runs_from_the_store(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store", "--targets", "--dtype", "fp32")
    stage = {"objective": "tasks", "align": 0.1, "arguments": {"fused": 1.0, "maps": 1.0}, "norms": "frozen"}
    online, stored = align(files, tmp_path / "online", **stage), align(files, tmp_path / "stored", store, **stage)
    for one, other in zip(online[1:], stored[1:], strict=True):
        losses = {name: value for name, value in one.items() if name.startswith("loss/")}
        assert {"loss/detect", "loss/align", "loss/align.fused8"} <= set(losses)
        assert {name: other[name] for name in losses} == pytest.approx(losses, rel=1e-4, abs=1e-4)


def test_views_and_mirrors_are_seen_by_both(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store", "--targets", "--views", "3")
    rows = align(files, tmp_path / "run", store, augment=True, views=3)
    assert rows[-1]["loss/align"] < rows[1]["loss/align"]


def test_features_and_targets_of_a_batch_are_of_the_same_view(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Features that stand in for targets as well come out alike, whatever is drawn."""
    store = FeatureStore.open(extract(files, tmp_path / "store", "--views", "3"))
    split = load_split(files[1], "train")
    loader = make_store_loader(
        store, split, 5, augment=AugmentConfig(mosaic=1, translate=0.3), shuffle=True, seed=0, targets=store
    )
    batches = list(loader)
    assert batches
    for batch in batches:
        assert batch.pyramid is not None
        assert batch.replaced is not None
        assert all(torch.equal(batch.pyramid[stride], batch.replaced[stride]) for stride in (8, 16, 32))
    plain = make_store_loader(store, split, 5, augment=None, shuffle=True, seed=0)
    pairs = [(batch.pyramid, other.pyramid) for batch, other in zip(batches, plain, strict=True)]
    assert any(not torch.equal(drawn[8], first[8]) for drawn, first in pairs if drawn and first)


@pytest.mark.parametrize(("levels", "target_levels"), [((8, 16, 32), (8,)), ((8,), (8, 16, 32)), ((8, 16), (16,))])
def test_pieces_of_a_mosaic_lie_on_the_cells_of_features_and_targets(
    files: tuple[Path, Path], tmp_path: Path, levels: tuple[int, ...], target_levels: tuple[int, ...]
) -> None:
    directory, split = extract(files, tmp_path / "store", "--views", "3"), load_split(files[1], "train")

    def only(strides: tuple[int, ...]) -> FeatureStore:
        store = FeatureStore.open(directory)
        store.index("train")  # opened with the manifest that it was written with
        kept = {stride: channels for stride, channels in store.manifest.levels.items() if stride in strides}
        store.manifest = store.manifest.model_copy(update={"levels": kept})
        return store

    store, targets, augment = only(levels), only(target_levels), AugmentConfig(mosaic=1, flip=0)
    dataset = StoreDataset(store, split, loader_augment(augment), 0, targets)
    whole = [store.read("train", [[store.whole(row, view)]])[max(levels)] for row in range(10) for view in range(3)]
    mosaics = 0
    for epoch in range(4):
        for batch in (dataset[(epoch, index)] for index in range(len(dataset))):
            assert batch.pyramid is not None
            assert batch.replaced is not None
            for stride in set(levels) & set(target_levels):
                assert torch.equal(batch.pyramid[stride], batch.replaced[stride])
            mosaics += not any(torch.equal(batch.pyramid[max(levels)], view) for view in whole)
    assert mosaics > 20, "of 40, as windows of four views can come out as one of them"


def test_grids_that_are_no_multiples_of_each_other_are_read_whole(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Strides 12 and 24 beside the detector's: 4 cells against 3."""
    source = tmp_path / "own_extractor.py"
    source.write_text(
        source.read_text().replace("Level(8, 6), Level(16, 8), Level(32, 12)", "Level(12, 6), Level(24, 8)")
    )
    directory, split = extract(files, tmp_path / "store", "--targets", "--imgsz", "96"), load_split(files[1], "train")
    store, targets = FeatureStore.open(directory), FeatureStore.open(directory / REPLACED)
    assert (store.cells, targets.cells) == (4, 3)
    dataset = StoreDataset(store, split, loader_augment(AugmentConfig(mosaic=1, flip=0)), 0, targets)
    for index in range(len(dataset)):
        batch = dataset[index]
        row = dataset.rows[index]
        for found, origin in ((batch.pyramid, store), (batch.replaced, targets)):
            assert found is not None
            wanted = origin.read("train", [[origin.whole(row)]])
            assert all(torch.equal(found[stride], wanted[stride]) for stride in wanted)


def test_a_whole_plan_of_alignment_and_labels_runs_from_the_store(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store", "--targets")
    run = train(
        make(files, features=store),
        files[1],
        plan="align-freeze-unfreeze",
        config=CONFIG.model_copy(update={"epochs": 4}),
        out=tmp_path / "run",
        features=store,
        progress=False,
    )
    assert {row["stage"] for row in run.results[1:]} >= {"align", "frozen", "joint"}


def test_a_folder_of_pictures_is_enough(files: tuple[Path, Path], tmp_path: Path) -> None:
    """From the command line, with nothing but photos."""
    photos = files[1].parent / "images" / "train"
    names = ["--model", str(files[0]), "--data", str(photos), "--imgsz", str(SIZE), "--device", "cpu", "--trust"]
    store, run = tmp_path / "store", tmp_path / "run"
    assert main(["extract", *names, "--out", str(store), "--targets"]) == 0
    options = ["--features", str(store), "--plan", "align", "--epochs", "2", "--workers", "0", "--out", str(run)]
    assert main(["train", *names, *options]) == 0
    assert (run / "last.safetensors").is_file()


def test_a_store_without_targets_or_with_others_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "store")
    with pytest.raises(StoreError, match=r"no outputs of the replaced layers .*/store --imgsz 64 .*--targets"):
        align(files, tmp_path / "none", store)
    extract(files, tmp_path / "more", "--targets", "--views", "2")
    shutil.copytree(tmp_path / "more" / REPLACED, store / REPLACED)
    with pytest.raises(StoreError, match="other images or views than the features beside it"):
        align(files, tmp_path / "views", store)
    manifest = store / REPLACED / "manifest.json"
    content = json.loads(manifest.read_text())
    content["extractor"]["weights"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="made with the extractor's weights 000"):
        align(files, tmp_path / "weights", store)


def test_targets_need_official_weights(files: tuple[Path, Path], tmp_path: Path) -> None:
    store = extract(files, tmp_path / "whole", "--targets")
    content = yaml.safe_load(files[0].read_text())
    del content["detector"]["weights"]
    files[0].write_text(yaml.safe_dump(content))
    names = ["--model", str(files[0]), "--data", str(files[1]), "--imgsz", str(SIZE), "--out", str(tmp_path / "store")]
    assert main(["extract", *names, "--trust", "--targets", "--device", "cpu"]) == 2
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match=r"name detector\.weights: an official checkpoint"):
        align(files, tmp_path / "run", store)


def test_damaged_targets_are_found_and_repaired(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extract(files, tmp_path / "store", "--targets")
    assert main(["features", "verify", str(store), "--data", str(files[1])]) == 0
    shard = next((store / REPLACED / "train").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    capsys.readouterr()
    assert main(["features", "verify", str(store)]) == 2
    assert f"{REPLACED}/train/{shard.name}: cut off" in capsys.readouterr().out
    with pytest.raises(StoreError, match="cut off"):
        align(files, tmp_path / "run", store)
    extract(files, store, "--targets")
    assert shard.read_bytes() == whole
    assert main(["features", "info", str(store), "--json", "-"]) == 0
    assert '"replaced layers"' in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["align", "tasks"])
def test_adapters_begin_with_the_statistics_of_stored_targets(
    objective: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    content = yaml.safe_load(files[0].read_text())
    content["adapters"] = {"type": "conv", "match_statistics": True}
    files[0].write_text(yaml.safe_dump(content))
    store = extract(files, tmp_path / "store")
    with pytest.raises(StoreError, match=r"run mtyolo extract .*--targets"):
        align(files, tmp_path / "none", store, objective=objective)
    extract(files, store, "--targets")
    model = make(files, features=store)
    plan = {"stages": [STAGE | {"objective": objective, "lr": 1e-12}]}
    train(model, files[1], plan=plan, config=CONFIG, out=tmp_path / "run", features=store, progress=False)
    assert model.adapters is not None
    batches = list(matching_batches(FeatureStore.open(store), model, load_split(files[1], "train"), CONFIG))
    model.adapters.train()
    with torch.no_grad():
        found = moments(model.adapters(batch.pyramid, (SIZE, SIZE)) for batch in batches)
    for stride, (mean, variance) in moments(batch.replaced for batch in batches if batch.replaced).items():
        assert torch.allclose(found[stride][0], mean, atol=1e-3)
        assert torch.allclose(found[stride][1], variance, atol=1e-3, rtol=1e-2)


def test_a_dry_run_counts_targets(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract(files, tmp_path / "store", "--targets", "--dtype", "int8", "--dry-run", "--images", "100", "--json", "-")
    cells = {8: 8 * 8, 16: 4 * 4, 32: 2 * 2}
    features = sum(channels * (cells[stride] + 8) for stride, channels in {8: 6, 16: 8, 32: 12}.items())
    targets = sum(channels * cells[stride] * 2 for stride, channels in {8: 64, 16: 128, 32: 256}.items())
    assert json.loads(capsys.readouterr().out)["bytes"] == 100 * (features + targets)
    assert not (tmp_path / "store").exists()
