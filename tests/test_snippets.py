"""The Python of README and docs runs as it is written, in the order in which one reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mtyolo
from mtyolo.api import train
from mtyolo.config.strict import Strict
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.standin import source_of
from mtyolo.features.writer import extract
from mtyolo.model import Model
from mtyolo.training.records.run import Run

REPOSITORY = Path(__file__).resolve().parents[1]
QUICK = {"epochs": 4, "imgsz": 64, "batch": 16, "workers": 0, "device": "cpu", "val_every": 4}


def snippets(document: str) -> list[str]:
    """Its blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, test_data: Path, coco_few: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands, with the files that the snippets name."""
    (tmp_path / "coco_mini.yaml").write_text(coco_few.read_text())
    (tmp_path / "coco.yaml").write_text(coco_few.read_text())
    (tmp_path / "yolov5n.pt").symlink_to(test_data / "weights/yolov5n.pt")
    (tmp_path / "bus.jpg").symlink_to(test_data / "images/bus.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick_train(model: Model, **options: Any) -> Run:
    """Not for hours."""
    return train(model, **options | {"config": QUICK, "progress": False})


@pytest.mark.slow
def test_the_readme_does_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(mtyolo), "train", quick_train)
    names: dict[str, Any] = {"images": torch.rand(1, 3, 640, 640)}
    for stride, channels in {8: 40, 16: 112, 32: 320}.items():
        names[f"f{stride}"] = torch.rand(1, channels, 640 // stride, 640 // stride)
    for block in snippets("README.md"):
        exec(block, names)
    run, official, outputs = names["run"], names["official"], names["official"](names["images"])
    assert run.results[1]["stage"] == "align"
    assert names["results"][0].save("out.png").is_file()
    assert [tuple(level.shape) for level in outputs.detect] == [(1, 3, side, side, 85) for side in (80, 40, 20)]
    assert official.decode(outputs).shape == (1, 25200, 85)
    assert names["MyNet"]()(names["images"])[16].shape == (1, 64, 40, 40)


def save_arrays(split: Split) -> None:
    """A file for each stride and picture, of one channel."""
    for stride in (8, 16, 32):
        Path(f"arrays/{stride}").mkdir(parents=True)
        for record in split.records:
            np.save(f"arrays/{stride}/{record.path.stem}.npy", np.zeros((1, 640 // stride, 640 // stride), np.float16))


@pytest.mark.slow
def test_the_docs_do_what_they_say(folder: Path) -> None:
    model = mtyolo.build("shapes-lite0.yaml", data="coco.yaml")
    split = load_split("coco.yaml", "train")
    extract(model.extractor, [split], "features", 64, ExtractOptions(source=source_of(model.config.extractor)))  # type: ignore[arg-type]
    names: dict[str, Any] = {"mtyolo": mtyolo, "model": model, "images": torch.rand(2, 3, 64, 64)}
    names |= {"image_index": torch.tensor([0, 1, 1]), "classes": torch.tensor([0, 5, 0])}
    save_arrays(split)
    names["boxes_cxcywh"] = torch.tensor([[0.5, 0.5, 0.4, 0.2]]).repeat(3, 1)
    for document in ("docs/features.md", "docs/training.md"):
        assert snippets(document)
        for block in snippets(document):
            exec(block, names)
    assert FeatureStore.open("my_features").manifest.splits == {"train": len(split)}
    assert next(iter(names["loader"])).pyramid.keys() == {8, 16, 32}
    assert names["loss"] > 0
    assert mtyolo.losses(model, model(names["images"]), names["targets"]).tasks.keys() == set(model.tasks)


def test_all_documents_with_python_are_run() -> None:
    documents = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/*.md")}
    assert {name for name in documents if snippets(name)} == {"docs/features.md", "docs/training.md"}


def test_every_option_of_a_run_is_in_the_table_with_its_default() -> None:
    text = (REPOSITORY / "docs/training.md").read_text(encoding="utf-8").split("## All options")[1].split("\n## ")[0]
    table = {name: (default, words) for name, default, words in re.findall(r"^\| `(\w+)` \|(.*?)\|(.*)\|$", text, re.M)}
    assert list(table) == list(TrainConfig.model_fields)
    for name, (default, words) in table.items():
        value = getattr(TrainConfig(), name)
        if isinstance(value, Strict):
            said = dict(re.findall(r"`(\w+)` ([\d.]+)", words))
            assert {key: float(number) for key, number in said.items()} == value.model_dump(), name
        else:
            assert yaml.safe_load(default) == value, name
