"""Each epoch's numbers reach the trackers that a run names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training import processes
from mtyolo.training import train as loop
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.rows import Row
from mtyolo.training.records.run import Run
from mtyolo.training.records.told import told
from mtyolo.training.settings import settle
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

PLAN = {"balance": "uncertainty", "stages": [{"name": "frozen", "freeze": ["detector"]}, {"name": "joint"}]}
EPOCHS = 4


class Fitness:
    """A validation that always finds the same."""

    fitness = 0.5

    def __call__(self, *arguments: Any, **options: Any) -> Fitness:
        return self

    def as_dict(self) -> dict[str, float]:
        return {"fitness": self.fitness, "detect/AP": 0.25}


class Notebook(GeneralTracker):
    """Keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[tuple[int | None, Row]] = []
        self.told: dict[str, Any] = {}
        self.closed = 0

    @property
    def tracker(self) -> Notebook:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told |= values

    def log(self, values: Row, step: int | None = None, **options: Any) -> None:
        self.pages.append((step, dict(values)))

    def finish(self) -> None:
        self.closed += 1


@pytest.fixture
def tracked(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"epochs": EPOCHS, "trackers": ["tensorboard"]})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What accelerate was asked for; in place of the tracker that a run names it gets an empty notebook each time."""
    calls: list[dict[str, Any]] = []

    def make(**options: Any) -> Accelerator:
        calls.append(options | {"notebook": Notebook()})
        return Accelerator(**options | {"log_with": [calls[-1]["notebook"]]})

    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    monkeypatch.setattr(processes, "Accelerator", make)
    return calls


def start(model: Model, data: Path, out: Path, config: TrainConfig) -> Run:
    return train(model, data, plan=PLAN, config=config, out=out, judge=Judge(Fitness()), progress=False)


def test_every_epoch_is_told_once_with_its_number_and_its_row(
    asked: list[dict[str, Any]], make_model: MakeModel, shapes: Path, tracked: TrainConfig, tmp_path: Path
) -> None:
    run = start(make_model(), shapes, tmp_path, tracked)
    (call,) = asked
    assert call["log_with"] == ["tensorboard"]
    assert call["project_dir"] == tmp_path
    assert call["notebook"].pages == list(enumerate(run.results))[1:], "all but the metrics of the untouched network"
    assert [row["stage"] for _, row in call["notebook"].pages] == ["frozen", "frozen", "joint", "joint"]
    for step, row in call["notebook"].pages:
        assert row["epoch"] == step
        numbers = [value for name, value in row.items() if name != "stage"]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
        assert {"loss/detect", "weight/keypoint", "detect/AP", "lr"} <= set(row)
    assert call["notebook"].closed == 1


def test_a_metric_without_a_value_is_not_told(
    asked: list[dict[str, Any]],
    make_model: MakeModel,
    shapes: Path,
    tracked: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fitness, "as_dict", lambda self: {"fitness": 0.5, "keypoint/AP": None})
    run = start(make_model(), shapes, tmp_path, tracked)
    assert "keypoint/AP" in run.results[-1]
    assert not any("keypoint/AP" in row for _, row in asked[0]["notebook"].pages)


def test_a_resumed_run_goes_on_with_the_epoch_that_was_cut_off(
    asked: list[dict[str, Any]],
    make_model: MakeModel,
    shapes: Path,
    tracked: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, steps = loop.training_step, []

    def interrupted(*arguments: Any) -> bool:
        steps.append(1)
        return step(*arguments) or len(steps) == 5

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        with pytest.raises(Interrupted):
            start(make_model(), shapes, tmp_path, tracked)
    run = train(resume=tmp_path, judge=Judge(Fitness()), progress=False)
    assert [call["notebook"].closed for call in asked] == [1, 1]
    assert asked[0]["notebook"].told.items() <= asked[1]["notebook"].told.items()
    first, second = (call["notebook"].pages for call in asked)
    assert [number for number, _ in first] == [1]
    assert [number for number, _ in second] == [2, 3, 4]
    assert first + second == list(enumerate(run.results))[1:]


def test_trackers_are_closed_where_a_run_fails(
    asked: list[dict[str, Any]],
    make_model: MakeModel,
    shapes: Path,
    tracked: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: Any) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "training_step", fails)
    with pytest.raises(ZeroDivisionError):
        start(make_model(), shapes, tmp_path, tracked)
    assert asked[0]["notebook"].closed == 1


def test_trackers_are_told_the_configuration_in_plain_values(
    asked: list[dict[str, Any]], make_model: MakeModel, shapes: Path, tracked: TrainConfig, tmp_path: Path
) -> None:
    start(make_model(), shapes, tmp_path, tracked)
    found = asked[0]["notebook"].told
    assert {type(value) for value in found.values()} == {str, int, float, bool}
    expected = {
        "epochs": EPOCHS,
        "batch": tracked.batch,
        "trackers": "tensorboard",
        "augment/mosaic": 1.0,
        "gains/box": 0.05,
        "data": str(shapes),
        "stages": "frozen, joint",
        "balance": "uncertainty",
        "model/names": "square, disc",
        "model/tasks/detect": True,
        "model/tasks/segment/prototypes": 4,
        "model/detector/graph/width_multiple": 0.05,
        "model/adapters/match_statistics": False,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert not [name for name in found if "backbone" in name or name in ("patience", "features")]


def test_a_long_text_is_told_in_part(make_model: MakeModel, shapes: Path) -> None:
    model = make_model()
    names = {number: f"class number {number}" for number in range(80)}
    model.config = model.config.model_copy(update={"names": names})
    text = told(settle(model, {"train": "x", "names": names}, PLAN, None, None))["model/names"]
    assert len(str(text)) == 250
    assert str(text).endswith("…")


def test_without_trackers_none_is_started(
    asked: list[dict[str, Any]], make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    start(make_model(), shapes, tmp_path, config.model_copy(update={"epochs": 2}))
    assert asked[0]["log_with"] is None
    assert asked[0]["notebook"].pages == []


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(
    make_model: MakeModel, shapes: Path, tracked: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers: tensorboard is not installed; pip install tensorboard"):
        start(make_model(), shapes, tmp_path, tracked)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_losses_of_each_epoch(
    make_model: MakeModel, shapes: Path, tracked: TrainConfig, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start(make_model(), shapes, tmp_path, tracked)
    events = EventAccumulator(str(tmp_path / "mtyolo"))
    events.Reload()
    for name in ("loss/detect", "weight/segment", "detect/AP", "fitness", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name])) for row in run.results[1:]], name
