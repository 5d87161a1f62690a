"""Gradients in half precision are scaled up, and the step stays the same. The scaler of torch works on a CPU, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from one_step import Steps, batches_of, steps_of

from mtyolo.config.training import TrainConfig
from mtyolo.model import Model
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


def scaled(model: Model, shapes: Path, out: Path, *, balance: str = "fixed", scale: float | None = 1024.0) -> Steps:
    steps = steps_of(model, shapes, out, balance=balance)
    if scale is not None:
        steps.work.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return steps


@pytest.mark.parametrize("balance", ["fixed", "uncertainty", "upgrad", "gradnorm"])
def test_a_scaled_step_is_the_step(balance: str, make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    weights = []
    for scale in (None, 1024.0):
        steps = scaled(make_model(), shapes, tmp_path / str(scale), balance=balance, scale=scale)
        for batch in batches_of(shapes)[:2]:
            steps.step(batch)
        weights.append(steps.state.model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_an_infinite_gradient_makes_no_step_and_lowers_the_scale(
    make_model: MakeModel, shapes: Path, tmp_path: Path
) -> None:
    steps = scaled(make_model(), shapes, tmp_path)
    batch = batches_of(shapes)[0]
    steps.step(batch)
    before = [parameter.detach().clone() for parameter in steps.work.parameters]
    steps.work.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    steps.step(batch)
    assert steps.work.scaler.get_scale() == 512.0
    assert all(torch.equal(old, new) for old, new in zip(before, steps.work.parameters, strict=True))


def test_gradients_that_are_infinite_at_every_scale_are_counted(
    make_model: MakeModel, shapes: Path, tmp_path: Path
) -> None:
    steps = scaled(make_model(), shapes, tmp_path, scale=4.0)
    steps.work.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    skipped = []
    for _ in range(4):
        steps.step(batches_of(shapes)[0])
        skipped.append(steps.work.guard.skipped)
    assert skipped == [0, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: fp16 is refused on a CPU")
def test_fp16_trains_on_a_gpu(make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path) -> None:
    options = config.model_copy(update={"device": "cuda", "precision": "fp16"})
    model = make_model()
    before = model.state_dict()["graph.layers.0.conv.weight"].clone()
    run = train(model, shapes, plan="all-at-once", config=options, out=tmp_path, progress=False)
    assert run.results[-1]["skipped"] == 0
    assert not torch.equal(before, model.state_dict()["graph.layers.0.conv.weight"].cpu())
