"""Ten small images and their store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_features import SIZE, TinyExtractor, make_images

from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.writer import extract


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A data file of ten small images."""
    return make_images(tmp_path / "data", 10)


@pytest.fixture
def split(images: Path) -> Split:
    return load_split(images, "train")


@pytest.fixture
def make_store(tmp_path: Path, split: Split) -> Callable[..., FeatureStore]:
    """A store of the ten images, in shards of four."""

    def make(name: str = "store", **options: object) -> FeatureStore:
        folder = tmp_path / name
        extract(TinyExtractor(), [split], folder, SIZE, ExtractOptions(batch=4, **options))  # type: ignore[arg-type]
        return FeatureStore.open(folder, "stream")

    return make


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtyolo.features.planning.SHARD_IMAGES", 4)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """results.png takes as long as a run of ten pictures; tests/training looks at it."""
    monkeypatch.setattr("mtyolo.training.records.run.plot_results", lambda rows, path: None)
