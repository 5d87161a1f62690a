"""mtyolo extract, mtyolo features, mtyolo train --features."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny_features import SIZE, make_images, own_extractor_model, write_own_extractor

from mtyolo.cli.main import main


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Options that name a model with an extractor of one's own, and ten images."""
    torch.set_num_threads(1)
    data = make_images(tmp_path / "data", 10)
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump(content | {"val": content["train"]}))
    model = tmp_path / "model.yaml"
    model.write_text(yaml.safe_dump(own_extractor_model()))
    write_own_extractor(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["--model", str(model), "--data", str(data), "--imgsz", str(SIZE), "--device", "cpu", "--trust"]
    sys.modules.pop("own_extractor", None)


def test_extract_verify_damage_repair(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main(["extract", *files, "--out", str(store), "--dtype", "int8"]) == 0
    shown = capsys.readouterr()
    assert "20 images in 6 shards written" in shown.err
    assert "10 images in 3 shards" in shown.out
    assert main(["features", "verify", str(store), "--data", files[3]]) == 0
    shard = store / "val" / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["features", "verify", str(store)]) == 2
    assert "val/00001.safetensors: cut off" in capsys.readouterr().out
    assert main(["extract", *files, "--out", str(store), "--dtype", "int8"]) == 0
    assert "4 images in 1 shards written; 5 shards were there already" in capsys.readouterr().err
    assert main(["features", "info", str(store), "--json", "-"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["manifest"]["dtype"] == "int8"
    assert info["splits"]["val"]["present"] == 3


def test_a_dry_run_writes_nothing_and_computes_bytes(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main(["extract", *files, "--out", str(store), "--dry-run", "--images", "1000", "--json", "-"]) == 0
    assert not store.exists()
    found = json.loads(capsys.readouterr().out)
    values = 6 * 8 * 8 + 8 * 4 * 4 + 12 * 2 * 2  # channels times cells at strides 8, 16, 32 of 64 px
    assert found["bytes"] == 1000 * values * 2
    assert found["seconds"] == pytest.approx(1000 * max(found["extracting"], found["drawing"] / 2))
    online, stored = found["extracting"] + found["learning"], found["reading"] + found["learning"]
    assert found["gain"] == pytest.approx(online / stored)


def test_images_that_can_not_be_used_are_named_or_stop_it(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/images/train/0003.png").write_bytes(b"no picture")
    store = tmp_path / "store"
    assert main(["extract", *files, "--out", str(store), "--strict"]) == 2
    assert "0003.png" in capsys.readouterr().err
    assert not store.exists()
    assert main(["extract", *files, "--out", str(store), "--splits", "train"]) == 0
    said = capsys.readouterr().err
    assert said.count("0003.png") == 1
    assert "9 images in 3 shards written" in said


def test_splits_that_the_data_does_not_have_are_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(files[3])
    content = yaml.safe_load(data.read_text())
    content["test"] = content.pop("train")
    del content["val"]
    data.write_text(yaml.safe_dump(content))
    assert main(["extract", *files, "--out", str(tmp_path / "store")]) == 2
    assert "has none of the splits train, val, so there is nothing to extract" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_what_is_wrong_is_said_in_one_sentence(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert main(["extract", *files, "--out", store, "--dtype", "fp12"]) == 2
    assert "--dtype fp12: features are stored as one of fp32, fp16, bf16, int8" in capsys.readouterr().err
    assert main(["features", "info", store]) == 2
    assert "no feature store" in capsys.readouterr().err
    assert main(["extract", *files, "--out", store, "--splits", "train", "--views", "2", "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["train", *files, "--features", store, "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    command = f"mtyolo extract --model … --data … --out {store} --imgsz {SIZE} --views 2 --dtype int8 --splits val"
    assert f"has no split val, only train; with the model and data of the others, run {command}\n" in said
    options = command.removeprefix("mtyolo extract --model … --data … ").split()
    assert main(["extract", *files[:4], "--device", "cpu", "--trust", *options]) == 0
    assert main(["features", "verify", store, "--data", files[3]]) == 0


def test_training_from_features_on_the_command_line(files: list[str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert main(["extract", *files, "--out", store]) == 0
    (tmp_path / "own_extractor.py").unlink()
    options = ["--epochs", "1", "--batch", "4", "--out", str(tmp_path / "run")]
    assert main(["train", *files, "--features", store, *options]) == 0
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_run_with_an_extractor_of_ones_own_is_resumed_with_trust(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *files, "--epochs", "1", "--batch", "4", "--workers", "0", "--out", out]) == 0
    assert main(["train", "--resume", out]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["train", "--resume", out, "--trust"]) == 0
