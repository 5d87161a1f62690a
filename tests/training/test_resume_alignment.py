"""A run that was cut off while adapters were aligned ends in the same weights, to the bit: online and from a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_end, state_of

from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.data.split import load_split
from mtyolo.features.manifest import REPLACED
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.replaced import ReplacedLayers
from mtyolo.features.standin import source_of
from mtyolo.features.writer import extract
from mtyolo.model import Model
from mtyolo.training import train as loop
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

SIZE = 64
VIEWS = 2
STAGE = {"train": ["adapters"], "optimizer": "adamw", "lr": 0.002}
PLAN = {
    "stages": [
        STAGE | {"name": "align", "objective": "align", "views": VIEWS, "epochs": 2},
        STAGE | {"name": "fused", "objective": "align", "arguments": {"fused": 1.0, "maps": 0.5}, "epochs": 1},
    ]
}
BATCHES = 2
"""A view."""
CONFIG = TrainConfig(epochs=3, imgsz=SIZE, batch=5, workers=0, device="cpu", warmup_epochs=0)

Align = Callable[[Path], None]


def lite(test_data: Path, data: Path, features: Path | None = None) -> Model:
    """An untrained extractor before YOLOv5n, whose adapters start with matched statistics."""
    torch.manual_seed(0)
    weights = str(test_data / "weights" / "yolov5n.pt")
    config = {
        "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
        "adapters": {"type": "conv", "match_statistics": True},
        "detector": {"graph": "yolov5n.yaml", "weights": weights},
    }
    return build(config, data=data, features=features)


@pytest.fixture(scope="module")
def store(test_data: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the training images and what the replaced layers gave, in two views."""
    model, folder = lite(test_data, shapes).eval(), tmp_path_factory.mktemp("store") / "features"
    assert model.extractor is not None
    assert model.config.extractor is not None
    splits = [load_split(shapes, split) for split in ("train", "val")]
    options = ExtractOptions(batch=4, dtype="fp32", views=VIEWS, source=source_of(model.config.extractor))
    extract(model.extractor, splits, folder, SIZE, options)  # type: ignore[arg-type]
    extract(ReplacedLayers(model), splits, folder / REPLACED, SIZE, options)
    return folder


@pytest.fixture(scope="module", params=["online", "stored"])
def begin(request: pytest.FixtureRequest, test_data: Path, shapes: Path) -> Align:
    """Starts the run in a folder."""
    features = request.getfixturevalue("store") if request.param == "stored" else None

    def run(out: Path) -> None:
        torch.set_num_threads(1)
        model = lite(test_data, shapes, features)
        train(model, shapes, plan=PLAN, config=CONFIG, out=out, features=features, progress=False)

    return run


@pytest.fixture(scope="module")
def whole(begin: Align, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    begin(out)
    return out


def at_step(number: int, happens: Callable[[], bool]) -> Callable[..., bool]:
    """The loop's step, after whose n-th time something happens."""
    step, taken = loop.training_step, []

    def counted(*arguments: Any) -> bool:
        taken.append(1)
        stopping = step(*arguments)
        return happens() if len(taken) == number else stopping

    return counted


def test_a_run_stopped_while_aligning_ends_in_the_same_state(
    begin: Align, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", at_step(1, lambda: True))
        with pytest.raises(Interrupted):
            begin(tmp_path)
    assert state_of(tmp_path)["position"] == {"stage": 0, "epoch": 0, "batch": 1}
    train(resume=tmp_path, progress=False)
    assert_same_end(whole, tmp_path)


class Killed(BaseException):
    """Nothing is saved on the way out."""


def die() -> bool:
    raise Killed


@pytest.mark.parametrize(
    ("seconds", "last_step", "position"),
    [
        (600.0, VIEWS * BATCHES + BATCHES + 1, {"stage": 0, "epoch": 1, "batch": 0}),
        (-1.0, 2 * VIEWS * BATCHES + BATCHES, {"stage": 1, "epoch": 0, "batch": BATCHES - 1}),
    ],
)
def test_a_run_killed_while_aligning_goes_on_from_what_was_saved(
    seconds: float,
    last_step: int,
    position: dict[str, int],
    begin: Align,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """seconds: between two saves inside an epoch; each epoch ends with one."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", seconds)
        patch.setattr(loop, "training_step", at_step(last_step, die))
        with pytest.raises(Killed):
            begin(tmp_path)
    assert state_of(tmp_path)["position"] == position
    train(resume=tmp_path, progress=False)
    assert_same_end(whole, tmp_path)


def test_the_steps_teach_something(whole: Path) -> None:
    """Or equal ends would say little."""
    losses = [row["loss/align"] for row in state_of(whole)["run"]["results"] if row["stage"] == "align"]
    assert losses[1] < 0.99 * losses[0]
