"""What a run leaves to look at: rows, plots, pictures, and a line for each epoch."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from mtyolo.api import train
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.drawing import draw_batch
from mtyolo.drawing.sheet import TILE_GAP, TILE_SIDE
from mtyolo.evaluation.validate import validate as evaluate
from mtyolo.model import Model
from mtyolo.training.batches.loading import StageLoader
from mtyolo.training.records import progress
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.progress import Display
from mtyolo.training.records.rows import Row, plot_results
from mtyolo.training.records.run import Run
from mtyolo.training.train import train as loop

MakeModel = Callable[[], Model]

TASKS = ("detect", "segment", "keypoint")
STAGES = ("frozen", "joint")


@dataclass
class Watched:
    """A run of two stages, and what was on the terminal meanwhile."""

    run: Run
    lines: list[str]


@pytest.fixture
def without_plots() -> None:
    """They are looked at here."""


@pytest.fixture(scope="module")
def watched(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    torch.set_num_threads(1)
    stages = [{"name": "frozen", "freeze": ["detector"], "epochs": 1}, {"name": "joint", "epochs": 2}]
    rare = config.model_copy(update={"val_every": 2})
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        plan = {"balance": "uncertainty", "stages": stages}
        run = train(make_model(), shapes, plan=plan, config=rare, out=tmp_path_factory.mktemp("run"))
    return Watched(run, screen.getvalue().splitlines())


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_same_picture(found: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> None:
    """But for what JPEG loses."""
    assert found.shape == drawn.shape
    assert np.abs(found.astype(int) - drawn).mean() < 6


def test_results_csv_has_a_row_an_epoch_with_what_people_look_for(watched: Watched) -> None:
    rows = list(csv.DictReader((watched.run.out / "results.csv").read_text().splitlines()))
    assert [(row["epoch"], row["stage"]) for row in rows] == [
        ("0", ""),
        ("1", "frozen"),
        ("2", "joint"),
        ("3", "joint"),
    ]
    columns = [f"{kind}/{task}" for task in TASKS for kind in ("loss", "weight")]
    columns += ["loss/detect.box", "loss/segment.mask", "loss/keypoint.location", "lr", "skipped"]
    for row in rows[1:]:
        assert all(math.isfinite(float(row[column])) for column in columns)
    assert all(rows[0][column] == "" for column in columns), "nothing was trained before"
    judged = [column for column in rows[0] if column.endswith("/AP")]
    assert {"detect/AP", "segment/AP", "keypoint/AP"} <= set(judged)
    assert [bool(row["detect/AP"]) for row in rows] == [True, True, False, True], "every second, and a stage's last"


def test_results_csv_says_what_the_run_object_says(watched: Watched) -> None:
    rows = list(csv.DictReader((watched.run.out / "results.csv").read_text().splitlines()))
    for written, row in zip(rows, watched.run.results, strict=True):
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                assert float(written[name]) == pytest.approx(value, rel=1e-5, abs=1e-9), name


def test_results_png_shows_four_panels(watched: Watched) -> None:
    pixels = picture(watched.run.out / "results.png")
    assert pixels.shape == (480, 4 * 720, 3)
    for panel in np.split(pixels, 4, axis=1):
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 10, "more than an empty sheet"


def test_the_first_training_batch_is_drawn_with_its_labels(watched: Watched, shapes: Path, config: TrainConfig) -> None:
    dataset = Dataset(load_split(shapes, "train"), config.imgsz, config.augment, config.seed)
    loader = make_loader(dataset, config.batch, shuffle=True, workers=0, seed=config.seed)
    batch = next(StageLoader(loader, config.seed).epoch(0))
    names = load_split(shapes, "train").names
    assert_same_picture(picture(watched.run.out / "train_batch.jpg"), draw_batch(batch, names))


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_leaves_truth_beside_prediction(stage: str, watched: Watched) -> None:
    pixels = picture(watched.run.out / f"val_{stage}.jpg")
    step = TILE_SIDE + TILE_GAP
    assert pixels.shape == (2 * step + TILE_GAP, 4 * step + TILE_GAP, 3), "four pictures: two pairs to a row"
    for top in (TILE_GAP, TILE_GAP + step):
        truth, prediction = (pixels[top:, left:][:TILE_SIDE, :TILE_SIDE] for left in (TILE_GAP, TILE_GAP + step))
        difference = np.abs(truth.astype(int) - prediction).max(2)
        assert 0.01 < (difference > 60).mean() < 0.6, "labels are drawn on one of them, and the picture is the same"


def test_the_average_is_what_is_judged_and_drawn(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model, seen = make_model(), []

    def draw(judged: Model, split: Split, *, size: int) -> NDArray[np.uint8]:
        assert (split.name, size) == ("val", config.imgsz)
        seen.append({name: value.clone() for name, value in judged.state_dict().items()})
        return np.full((20, 30, 3), 200, np.uint8)

    plan = {"stages": [{"name": "only"}]}
    run = loop(model, shapes, plan=plan, config=config, out=tmp_path, judge=Judge(evaluate, draw), progress=False)
    (average,) = seen
    own, saved = model.state_dict(), load_file(run.last)
    assert all(torch.equal(average[name], value) for name, value in saved.items())
    assert not all(torch.equal(average[name], value) for name, value in own.items())
    assert_same_picture(picture(tmp_path / "val_only.jpg"), np.full((20, 30, 3), 200, np.uint8))


def test_before_the_first_epoch_plan_and_metrics_are_said(watched: Watched) -> None:
    text = "\n".join(watched.lines)
    assert text.index("stage frozen: objective tasks, 1 epochs, trains all without detector") < text.index(
        "stage joint: objective tasks, 2 epochs, trains all ("
    )
    (before,) = [line for line in watched.lines if line.startswith("before training: ")]
    metrics = [name for name in watched.run.results[0] if name not in ("epoch", "stage")]
    assert all(f"{name} {watched.run.results[0][name]:.3f}" in before for name in metrics)


def nothing_to_find(shapes: Path, folder: Path, **changes: Any) -> Path:
    """The drawn shapes, with a validation split whose annotations are changed."""
    for name in ("train", "val", "train.json"):
        (folder / name).symlink_to(shapes.parent / name)
    content = json.loads((shapes.parent / "val.json").read_text())
    content["annotations"] = [one | changes for one in content["annotations"]] if changes else []
    (folder / "val.json").write_text(json.dumps(content))
    path = folder / "shapes.yaml"
    path.write_text(shapes.read_text())
    return path


@pytest.mark.parametrize(
    ("changes", "open_tasks"),
    [
        ({"keypoints": [0, 0, 0, 0, 0, 0]}, ["keypoint"]),
        ({"iscrowd": 1}, ["detect", "keypoint"]),
        ({}, ["detect", "keypoint"]),
    ],
    ids=["no points", "crowd only", "no objects"],
)
def test_a_run_goes_on_where_validation_has_nothing_to_find(
    changes: dict[str, Any],
    open_tasks: list[str],
    make_model: MakeModel,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = nothing_to_find(shapes, tmp_path, **changes)
    short = config.model_copy(update={"epochs": 1})
    run = train(make_model(), data, plan="all-at-once", config=short, out=tmp_path / "run")
    judged = [task for task in TASKS if f"{task}/AP" in run.results[0]]
    assert [task for task in judged if run.results[0][f"{task}/AP"] is None] == open_tasks
    lines = capsys.readouterr().out.splitlines()
    (before,) = [line for line in lines if line.startswith("before training: ")]
    assert not [task for task in open_tasks if f"{task}/" in before]
    assert ("fitness" in before) == (len(open_tasks) < len(judged))
    rows = list(csv.DictReader((run.out / "results.csv").read_text().splitlines()))
    for row in rows:
        assert [task for task in judged if not row[f"{task}/AP"]] == open_tasks
        assert bool(row["fitness"]) == (len(open_tasks) < len(judged))
    assert "nan" not in (run.out / "results.csv").read_text().lower()
    assert picture(run.out / "results.png").shape[1] == (4 if len(open_tasks) < len(judged) else 3) * 720
    assert run.best.exists()


def test_the_line_of_an_epoch_has_every_tasks_loss_weight_and_metric_and_the_time_left(watched: Watched) -> None:
    lines = [line for line in watched.lines if re.match(r" +\d+/\d+ · ", line)]
    assert len(lines) == 3
    for line, row in zip(lines, watched.run.results[1:], strict=True):
        start, stage, *tasks, left = line.split(" · ")
        assert (start.strip(), stage) == (f"{row['epoch']}/3", row["stage"])
        assert re.fullmatch(r"left \d+:\d\d", left)
        assert tasks == [expected_words(task, row) for task in TASKS]
    assert lines[-1].endswith("left 0:00")


def expected_words(task: str, row: Row) -> str:
    words = f"{task} {row[f'loss/{task}']:.4f} x {row[f'weight/{task}']:.2f}"
    judged = [name for name in ("AP", "OKS") if f"{task}/{name}" in row]
    return " ".join([words, *(f"{name} {row[f'{task}/{name}']:.3f}" for name in judged)])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss/detect": 0.5, "weight/detect": 1.0}, "detect 0.5000"),
        ({"loss/detect": 0.5, "weight/detect": math.nan}, "detect 0.5000"),
        ({"loss/detect": 0.5, "weight/detect": 0.25, "detect/AP": math.nan}, "detect 0.5000 x 0.25"),
        ({"loss/detect": 0.5, "loss/detect.box": 0.4, "detect/AP": 0.0}, "detect 0.5000 AP 0.000"),
        ({"loss/align": 0.7, "weight/align": 1.0, "loss/align.8": 0.6}, "align 0.7000"),
        ({"loss/detect": 0.5, "loss/distill": 2.0, "weight/distill": 3.0}, "detect 0.5000 · distill 2.0000 x 3.00"),
        (
            {"loss/align": 0.7, "loss/align.8": 0.6, "detect/AP": 0.2, "detect/AP50": 0.4},
            "align 0.7000 · detect AP 0.200",
        ),
        (
            {"loss/segment": 0.5, "detect/AP": 0.1, "segment/AP": 0.0, "keypoint/AP": 0.0, "keypoint/OKS": 0.25},
            "segment 0.5000 AP 0.000 · detect AP 0.100 · keypoint AP 0.000 OKS 0.250",
        ),
        ({"loss/align": 0.5, "val/align": 0.75, "detect/AP": 0.1}, "align 0.5000 val 0.7500 · detect AP 0.100"),
        ({"loss/detect": 0.5, "segment/AP": None, "keypoint/AP": None, "keypoint/OKS": math.nan}, "detect 0.5000"),
    ],
)
def test_a_line_has_every_number_and_leaves_out_what_says_nothing(
    values: dict[str, float | None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Display(True, [1] * 4).epoch_ends({"epoch": 1, "stage": "one", **values})
    assert capsys.readouterr().out.startswith(f"   1/4 · one · {words} · left ")


@pytest.mark.parametrize(
    ("epochs", "first", "seconds", "left"),
    [
        (4, 1, 20, "1:00"),
        (4, 3, 100, "1:40"),
        (4, 4, 100, "0:00"),
        (200, 101, 60, "1:39:00"),
        (3, 1, 0.26, "0:01"),
    ],
)
def test_time_left_counts_only_the_epochs_of_this_process(
    epochs: int,
    first: int,
    seconds: float,
    left: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """first: the epoch that this process begins with, later than 1 in a run that was resumed."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(True, [30] * epochs)
    for epoch in range(first, min(first + 2, epochs + 1)):
        now[0] += seconds
        display.epoch_ends({"epoch": epoch, "stage": "one"})
    assert capsys.readouterr().out.splitlines()[0].endswith(f"left {left}")


def test_a_line_of_three_tasks_fits_the_width_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    losses = {f"loss/{task}": 0.1234 for task in TASKS}
    metrics = {f"{task}/AP": 0.123 for task in TASKS} | {"keypoint/OKS": 0.456}
    Display(True, [1] * 100).epoch_ends({"epoch": 1, "stage": "joint", **losses, **metrics})
    assert len(capsys.readouterr().out) <= 120


def test_time_left_weighs_epochs_by_their_length(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of four views each, then three of one."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(True, [40, 40, 10, 10, 10])
    for epoch, seconds in enumerate((80, 80, 20, 20, 20), 1):
        now[0] += seconds
        display.epoch_ends({"epoch": epoch, "stage": "one"})
    ends = [line.split("left ")[1] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["2:20", "1:00", "0:40", "0:20", "0:00"]


def test_of_an_epoch_that_is_resumed_inside_only_what_was_left_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(True, [40, 40])
    display.epoch_begins("one 1/2", 8, 6)
    now[0] += 10
    display.epoch_ends({"epoch": 1, "stage": "one"})
    assert capsys.readouterr().out.endswith("left 0:40\n")


def test_nothing_is_said_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(False, [1] * 4) as display:
        display.say("words")
        display.epoch_begins("one 1/4", 3, 0)
        display.batch_done()
        display.epoch_ends({"epoch": 1, "stage": "one", "loss/detect": 0.5})
    assert capsys.readouterr().out == ""


ROWS: list[Row] = [
    {"epoch": 0, "stage": "", "detect/AP": 0.1, "keypoint/OKS": 0.2},
    {"epoch": 1, "stage": "frozen", "loss/detect": 3.0, "loss/detect.box": 1.0, "weight/detect": 0.5},
    {"epoch": 2, "stage": "frozen", "loss/detect": 2.0, "loss/detect.box": 0.5, "weight/detect": 0.6, "lr": 0.1},
    {"epoch": 3, "stage": "joint", "loss/detect": 1.0, "loss/segment": 4.0, "detect/AP": 0.3, "fitness": 0.3},
]


@pytest.fixture
def figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The plot of ROWS, before it became pixels."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    plot_results(ROWS, tmp_path / "results.png")
    assert [path.name for path in tmp_path.iterdir()] == ["results.png"]
    return drawn[0]


def test_stage_boundaries_are_drawn_in_every_panel_and_named(figure: Figure) -> None:
    for axes in figure.axes:
        upright = [float(np.asarray(line.get_xdata())[0]) for line in axes.lines if line.get_linestyle() == "--"]
        assert upright == [0.5, 2.5]
        assert [(text.get_position()[0], text.get_text().strip()) for text in axes.texts] == [
            (0.5, "frozen"),
            (2.5, "joint"),
        ]


def test_each_panel_has_a_curve_for_each_of_its_columns(figure: Figure) -> None:
    curves = {
        axes.get_title(): {
            str(line.get_label()): [tuple(point) for point in np.asarray(line.get_xydata()).tolist()]
            for line in axes.lines
            if line.get_linestyle() != "--"
        }
        for axes in figure.axes
    }
    assert curves == {
        "loss of each task": {"detect": [(1, 3.0), (2, 2.0), (3, 1.0)], "segment": [(3, 4.0)]},
        "loss components": {"detect.box": [(1, 1.0), (2, 0.5)]},
        "weight in the balance": {"detect": [(1, 0.5), (2, 0.6)]},
        "average precision, mean OKS": {"detect/AP": [(0, 0.1), (3, 0.3)], "keypoint/OKS": [(0, 0.2)]},
    }


def test_nothing_to_plot_leaves_no_file(tmp_path: Path) -> None:
    plot_results([{"epoch": 1, "stage": "one", "lr": 0.1}], tmp_path / "results.png")
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_a_line_of_a_run(tmp_path: Path) -> None:
    rows: list[Row] = [{"epoch": 0, "stage": ""}, {"epoch": 1, "stage": "all"}]
    assert repr(Run(tmp_path, rows, 0.25)) == f"Run({str(tmp_path)!r}, epoch 1, best fitness 0.250)"
    assert repr(Run(tmp_path)) == f"Run({str(tmp_path)!r}, epoch 0, never validated)"
