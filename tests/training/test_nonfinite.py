"""Losses and gradients that are no numbers: undone, named, counted."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from one_step import batches_of, steps_of

from mtyolo.config.training import TrainConfig
from mtyolo.data.split import load_split
from mtyolo.errors import MtyoloError
from mtyolo.model import Model
from mtyolo.training.nonfinite import NonFiniteGuard
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_that_diverges_names_the_images_counts_and_stops(
    batch: int,
    make_model: MakeModel,
    shapes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = TrainConfig(
        epochs=20, imgsz=64, batch=batch, workers=0, device="cpu", lr=1e15, clip_norm=None, warmup_epochs=0
    )
    with (
        caplog.at_level(logging.WARNING, "mtyolo"),
        pytest.raises(MtyoloError, match=r"for 10 batches in a row, the last of .*\.png.*training has diverged"),
    ):
        train(make_model(), shapes, config=config, out=tmp_path, progress=False)
    named = [record.message for record in caplog.records if "skipped the batch of" in record.message]
    assert len(named) == 10
    assert str(shapes.parent / "train") in named[0]


def test_a_skipped_batch_leaves_the_statistics_as_they_were(make_model: MakeModel, shapes: Path) -> None:
    model = make_model().train()
    batch = batches_of(shapes, 3)[0]
    guard = NonFiniteGuard(model, load_split(shapes, "train").records)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.remember(batch)
    model(torch.full((2, 3, 64, 64), math.inf))
    assert not all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    guard.skip(batch, {"detect": torch.tensor(math.nan)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert guard.skipped == 1
    resumed = NonFiniteGuard(model, guard.records)
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.skipped, resumed.in_a_row) == (1, 1)


def test_a_batch_skipped_in_the_middle_of_a_step_leaves_what_the_others_did(
    make_model: MakeModel, shapes: Path
) -> None:
    model, batch = make_model().train(), batches_of(shapes, 3)[0]
    guard = NonFiniteGuard(model, load_split(shapes, "train").records)
    guard.remember(batch, begins_step=True)
    model(torch.rand(2, 3, 64, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.remember(batch, begins_step=False)
    model(torch.full((2, 3, 64, 64), math.inf))
    guard.skip(batch, {"detect": torch.tensor(math.nan)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [0, 1])
def test_a_gradient_that_is_not_finite_undoes_and_names_all_batches_of_the_step(
    bad: int, make_model: MakeModel, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    steps = steps_of(model, shapes, tmp_path, accumulate=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second, third = batches_of(shapes)
    for number, batch in enumerate((first, second)):
        factor = math.inf if number == bad else 1.0
        hook = model.get_parameter("graph.layers.0.conv.weight").register_hook(lambda grad, by=factor: grad * by)
        steps.step(batch)
        hook.remove()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (steps.work.guard.skipped, steps.work.guard.in_a_row) == (2, 1)
    (said,) = [record.message for record in caplog.records]
    assert re.findall(r"(\d+)\.png", said) == ["0", "1", "2", "3"]
    assert said.startswith("a gradient is not finite: skipped the 2 batches of ")
    assert said.endswith(" and 4 more")
    steps.step(third)
    assert (steps.work.guard.skipped, steps.work.guard.in_a_row) == (2, 0), "the next step begins anew"
    assert len(steps.gradients) == 1


def test_a_stage_without_a_step_is_a_failure_and_one_with_a_step_is_not(make_model: MakeModel, shapes: Path) -> None:
    model, batch = make_model().train(), batches_of(shapes, 3)[0]
    guard = NonFiniteGuard(model, load_split(shapes, "train").records)
    bad = {"detect": torch.tensor(math.nan)}
    guard.end_stage()
    guard.remember(batch)
    guard.skip(batch, bad)
    resumed = NonFiniteGuard(model, guard.records)
    resumed.load_state_dict(guard.state_dict())
    resumed.remember(batch)
    resumed.end_stage()
    for _ in range(2):
        guard.remember(batch)
        guard.skip(batch, bad)
    with pytest.raises(
        MtyoloError, match=r"detect is nan for all 3 batches of a stage, the last of .*2\.png: training"
    ):
        guard.end_stage()
    earlier = NonFiniteGuard(model, guard.records)
    earlier.load_state_dict({"skipped": 2, "in_a_row": 2})
    earlier.remember(batch)
    earlier.skip(batch, bad)
    earlier.end_stage()
