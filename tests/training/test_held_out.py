"""The error of alignment on pictures that nothing trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtyolo.api import build
from mtyolo.checkpoint import load
from mtyolo.config.data import DataConfig
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.model import Model
from mtyolo.training.objectives.alignment import make_align
from mtyolo.training.records.run import Run
from mtyolo.training.train import train

SIZE, BATCH = 64, 4
ALIGN = {"name": "align", "objective": "align", "train": ["adapters"], "optimizer": "adamw", "lr": 0.002}


@pytest.fixture
def without_plots() -> None:
    """They are looked at here."""


@pytest.fixture(scope="module")
def unlabelled(large_images: Path) -> DataConfig:
    return DataConfig(path=str(large_images), train="train", val="val", nc=80)


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos without a label: noise, with more of it for validation than fits one batch."""
    from PIL import Image

    folder, random = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 6)):
        (folder / split).mkdir()
        for number in range(count):
            pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=random).numpy()
            Image.fromarray(pixels).resize((SIZE, SIZE)).save(folder / split / f"{number}.png")
    return folder


def make(test_data: Path, data: DataConfig) -> Model:
    torch.manual_seed(0)
    detector = {"graph": "yolov5n.yaml", "weights": str(test_data / "weights" / "yolov5n.pt")}
    extractor = {"name": "timm/mobilenetv2_035", "weights": "none"}
    return build({"extractor": extractor, "adapters": {"type": "conv"}, "detector": detector}, data=data)


def run(model: Model, data: DataConfig, out: Path, epochs: int = 1, *stages: dict[str, Any]) -> Run:
    config = TrainConfig(
        epochs=epochs,
        imgsz=SIZE,
        batch=BATCH,
        workers=0,
        device="cpu",
        warmup_epochs=0,
        augment={"mosaic": 0},
    )
    return train(model, data, plan={"stages": [*(stages or (ALIGN,))]}, config=config, out=out, progress=False)


def test_it_is_that_of_the_average_on_the_validation_pictures(
    test_data: Path, unlabelled: DataConfig, tmp_path: Path
) -> None:
    model = make(test_data, unlabelled)
    found = run(model, unlabelled, tmp_path)
    averaged = load(found.last).eval()
    objective = make_align(averaged, {}, torch.device("cpu"))
    dataset = Dataset(load_split(unlabelled, "val"), SIZE, None)
    with torch.no_grad():
        losses = [objective(averaged, batch) for batch in make_loader(dataset, BATCH, shuffle=False, workers=0, seed=0)]
    assert len(losses) == 2
    row = found.results[-1]
    for name in ("align.8", "align.16", "align.32"):
        expected = torch.stack([loss.components[name] for loss in losses]).mean()
        assert row[f"val/{name}"] == pytest.approx(float(expected), rel=1e-4)
    assert row["val/align"] == pytest.approx(sum(row[f"val/align.{s}"] for s in (8, 16, 32)) / 3, rel=1e-4)  # type: ignore[misc]
    assert row["val/align"] != pytest.approx(row["loss/align"], rel=1e-3)
    assert (tmp_path / "results.png").stat().st_size > 0


def test_a_run_that_only_aligns_is_judged_by_it(test_data: Path, unlabelled: DataConfig, tmp_path: Path) -> None:
    found = run(make(test_data, unlabelled), unlabelled, tmp_path, 3)
    errors = [row["val/align"] for row in found.results]
    assert [row["fitness"] for row in found.results] == [-float(error or 0) for error in errors]
    assert found.best_fitness == -min(float(error or 0) for error in errors)
    assert found.best.name == "best.safetensors"


def test_of_several_stages_the_last_decides(test_data: Path, unlabelled: DataConfig, tmp_path: Path) -> None:
    """Its error has more parts, and would never be less than the first's."""
    outputs = ALIGN | {"name": "outputs", "arguments": {"fused": 1.0, "maps": 100.0}}
    found = run(make(test_data, unlabelled), unlabelled, tmp_path, 4, ALIGN, outputs)
    errors = [float(row["val/align"] or 0) for row in found.results]
    assert max(errors[:2]) < min(errors[2:])
    assert found.best_fitness == -min(errors[2:])
    best, last = load(found.best).state_dict(), load(found.last).state_dict()
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (errors[3] < errors[2])


def test_a_run_that_goes_on_with_tasks_is_not(test_data: Path, unlabelled: DataConfig, tmp_path: Path) -> None:
    """The last stage's weights are what the run is for, and nothing says how good they are."""
    teacher = {"weights": str(test_data / "weights" / "yolov5n.pt"), "output": {"scaled": 1.0}, "classes": "by-number"}
    second = {"name": "again", "distill": {"teachers": [teacher], "hard": 0}, "train": ["adapters"]}
    found = run(make(test_data, unlabelled), unlabelled, tmp_path, 2, ALIGN, second)
    assert "val/align" in found.results[0]
    assert all(row.get("fitness") is None for row in found.results)
    assert found.best == found.last
