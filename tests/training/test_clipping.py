"""Gradients are clipped by value, then by norm; in a run, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtyolo.config.training import TrainConfig
from mtyolo.model import Model
from mtyolo.training.optimizer import clip_gradients
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

MOMENTUM, RATE = 0.9, 0.5
REACH = RATE * (1 + MOMENTUM)
"""Of Nesterov's first step: the gradient itself, and once more by its momentum."""


@pytest.mark.parametrize(
    ("clip_value", "clip_norm", "norm", "expected"),
    [
        (None, None, 5.0, [3.0, -4.0]),
        (None, 10.0, 5.0, [3.0, -4.0]),
        (None, 2.5, 5.0, [1.5, -2.0]),
        (3.5, None, math.hypot(3.0, 3.5), [3.0, -3.5]),
        (1.0, None, math.sqrt(2), [1.0, -1.0]),
        (1.0, 0.5, math.sqrt(2), [0.5 / math.sqrt(2), -0.5 / math.sqrt(2)]),
        (3.5, 2.5, math.hypot(3.0, 3.5), [2.5 * 3.0 / math.hypot(3.0, 3.5), -2.5 * 3.5 / math.hypot(3.0, 3.5)]),
    ],
)
def test_values_are_clipped_first_and_the_norm_of_what_is_left_then(
    clip_value: float | None, clip_norm: float | None, norm: float, expected: list[float]
) -> None:
    first, second, without = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    found = clip_gradients([first, second, without], clip_value, clip_norm)
    assert float(found) == pytest.approx(norm)
    assert [float(first.grad), float(second.grad)] == pytest.approx(expected, rel=1e-5)
    assert without.grad is None


def test_a_norm_that_is_not_finite_is_returned_as_it_is() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert not clip_gradients([parameter], None, 10.0).isfinite()
    assert not clip_gradients([parameter], None, None).isfinite()


def test_infinity_is_not_clipped_to_a_large_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.inf])
    assert not clip_gradients([parameter], 1.0, 10.0).isfinite()


def first_step(
    model: Model,
    data: Path,
    out: Path,
    *,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    stage_value: float | None = None,
) -> torch.Tensor:
    """How far each weight moves in the only step of a run, in double precision."""
    before = {name: value.detach().clone().double() for name, value in model.named_parameters()}
    config = TrainConfig(
        epochs=1,
        imgsz=64,
        batch=10,
        workers=0,
        device="cpu",
        lr=RATE,
        momentum=MOMENTUM,
        weight_decay=0,
        warmup_epochs=0,
        clip_value=clip_value,
        clip_norm=clip_norm,
    )
    plan = {"stages": [{"name": "one", "tasks": ["detect", "segment"], "clip_value": stage_value}]}
    train(model, data, plan=plan, config=config, out=out, progress=False)
    moves = [(value.detach().double() - before[name]).flatten() for name, value in model.named_parameters()]
    return torch.cat(moves)


def test_a_runs_clip_value_bounds_every_weights_step(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    limit = 1e-3
    clipped = first_step(make_model(), shapes, tmp_path / "clipped", clip_value=limit)
    assert float(clipped.abs().max()) == pytest.approx(REACH * limit, rel=1e-3)
    free = first_step(make_model(), shapes, tmp_path / "free")
    assert float(free.abs().max()) > 10 * REACH * limit
    small = free.abs() < 0.9 * REACH * limit
    assert torch.allclose(clipped[small], free[small], atol=1e-6), "only what was larger is clipped"


def test_a_stages_clip_value_comes_before_the_runs(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    run = first_step(make_model(), shapes, tmp_path / "run", clip_value=1e-3)
    stage = first_step(make_model(), shapes, tmp_path / "stage", clip_value=0.5, stage_value=1e-3)
    assert torch.equal(stage, run)


def test_a_runs_clip_norm_bounds_the_whole_step_and_keeps_its_direction(
    make_model: MakeModel, shapes: Path, tmp_path: Path
) -> None:
    limit = 0.05
    clipped = first_step(make_model(), shapes, tmp_path / "clipped", clip_norm=limit)
    free = first_step(make_model(), shapes, tmp_path / "free")
    assert float(clipped.norm()) == pytest.approx(REACH * limit, rel=1e-3)
    assert float(free.norm()) > 2 * REACH * limit
    assert float(torch.cosine_similarity(clipped, free, dim=0)) == pytest.approx(1, abs=1e-3)


def test_in_a_run_values_are_clipped_before_the_norm(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    """The other way round, the norm's limit would leave nothing that exceeds the value's."""
    value = first_step(make_model(), shapes, tmp_path / "value", clip_value=1e-3)
    limit = 0.5 * float(value.norm()) / REACH
    both = first_step(make_model(), shapes, tmp_path / "both", clip_value=1e-3, clip_norm=limit)
    assert torch.allclose(both, 0.5 * value, atol=1e-6)


def test_a_run_without_momentum_is_possible(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    plain = config.model_copy(update={"momentum": 0.0, "epochs": 1})
    run = train(make_model(), shapes, config=plain, out=tmp_path, progress=False)
    assert run.last.is_file()
