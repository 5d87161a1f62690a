"""Stores written by other programs."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_features import make_images

from mtyolo.data.split import load_split
from mtyolo.errors import StoreError
from mtyolo.extractors.base import GivenFeatures
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.reader import FeatureStore
from mtyolo.features.verify import verify

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "write_features.py"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A store written by the example, and the data file of its images."""
    data = make_images(tmp_path / "data", 5)
    folder = tmp_path / "data/images/train"
    for path in folder.glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(folder), str(tmp_path / "store")])
    runpy.run_path(str(EXAMPLE))
    return tmp_path / "store", data


class GivenModel:
    """Stands for a model whose file says `name: features`."""

    extractor = GivenFeatures({8: 3, 16: 3, 32: 3})


def test_the_example_writes_a_store_that_verifies_and_loads(written: tuple[Path, Path]) -> None:
    directory, data = written
    split = load_split(data, "train")
    assert verify(directory, [split]) == []
    store = FeatureStore.open(directory)
    store.check(GivenModel(), split, 320)
    batch = next(iter(make_store_loader(store, split, 5, augment=None, shuffle=False, seed=0)))
    assert batch.pyramid is not None
    assert {stride: tuple(level.shape) for stride, level in batch.pyramid.items()} == {
        8: (5, 3, 40, 40),
        16: (5, 3, 20, 20),
        32: (5, 3, 10, 10),
    }
    assert torch.equal(batch.targets.image_index, torch.arange(5))


def test_the_example_is_as_short_as_promised() -> None:
    body = EXAMPLE.read_text().split('"""')[2].splitlines()
    statements = [line for line in body if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) <= 20


def test_a_manifest_that_promises_other_tensors_is_caught(written: tuple[Path, Path]) -> None:
    directory, data = written
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"dtype": "fp32"}))
    loader = make_store_loader(
        FeatureStore.open(directory), load_split(data, "train"), 5, augment=None, shuffle=False, seed=0
    )
    with pytest.raises(StoreError, match=r"tensor 8 is torch\.float16 .* the manifest says torch\.float32"):
        next(iter(loader))
    path.write_text(json.dumps(manifest | {"splits": {"train": 6}, "images_per_shard": 6}))
    with pytest.raises(StoreError, match="have 5 images, the manifest says 6"):
        FeatureStore.open(directory).index("train")
