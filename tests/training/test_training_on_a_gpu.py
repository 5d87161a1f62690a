"""The loop on a GPU: the numbers of a CPU, in every precision, and nothing lost on the way."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import batches_of, steps_of
from test_every_balance import TASKS, steps_or_skip
from test_resume import PLAN, SignalAfter, state_of

from mtyolo.api import build
from mtyolo.checkpoint import load
from mtyolo.config.plan import BALANCES
from mtyolo.config.training import TrainConfig
from mtyolo.evaluation.validate import validate
from mtyolo.model import Model
from mtyolo.training.batches.batch_size import MOST, fitting_batch
from mtyolo.training.records.judging import Judge
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MakeModel = Callable[[], Model]

BY_CHANCE = ("random", "graddrop", "pcgrad", "gradvac")
"""Words that draw, on a GPU from its own generator."""


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not TensorFloat32, which rounds to three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("word", BALANCES)
def test_a_step_on_a_gpu_is_the_step_on_a_cpu(word: str, make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    means, gradients = [], []
    for device in ("cpu", "cuda"):
        steps = steps_or_skip(make_model(), shapes, tmp_path / device, word, device=device)
        for batch in batches_of(shapes)[:2]:
            found = steps.step(batch)
        means.append(found)
        gradients.append(steps.gradients[0])
        assert steps.work.guard.skipped == 0
    if word in BY_CHANCE:
        return
    losses = [{name: value for name, value in found.items() if name.startswith("loss/")} for found in means]
    assert losses[1] == pytest.approx(losses[0], rel=0.02), "after a step"
    for name, expected in gradients[0].items():
        error = float((gradients[1][name].cpu() - expected).norm())
        assert error < 0.01 * float(expected.norm()) + 1e-6, name


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "bf16"])
def test_what_was_trained_on_a_gpu_is_judged_and_used_on_both(
    precision: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    options = config.model_copy(update={"device": "cuda", "precision": precision, "workers": 2})
    model = make_model()
    run = train(model, shapes, plan="all-at-once", config=options, out=tmp_path, judge=Judge(validate), progress=False)
    for row in run.results[1:]:
        assert row["skipped"] == 0
        assert all(math.isfinite(float(row[f"loss/{task}"] or 0)) for task in TASKS)
        assert "detect/AP" in row
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    opened = load(run.out / "last.safetensors").eval()
    assert {parameter.device.type for parameter in opened.parameters()} == {"cpu"}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        on_cpu, on_gpu = opened(images), opened.to("cuda")(images.to("cuda"))
    for one, other in zip(on_cpu.detect, on_gpu.detect, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.02), ("fp16", 0.3)])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_run_cut_off_on_a_gpu_goes_on_there(
    stop_at: int,
    precision: str,
    error: float,
    make_model: MakeModel,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
) -> None:
    """A GPU adds in any order. Of runs that were not cut off, in single precision, losses then differ by 2e-5 after
    four epochs; in half precision by up to 0.1, as one rounding more or less grows. Both seen on an H100."""
    options = config.model_copy(update={"device": "cuda", "precision": precision})
    given: dict[str, Any] = {"plan": PLAN, "config": options, "progress": False}
    whole = train(make_model(), shapes, out=tmp_path / "whole", judge=Judge(SignalAfter(0, 0)), **given)
    judge = Judge(SignalAfter(stop_at, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(make_model(), shapes, out=tmp_path / "cut", judge=judge, **given)
    assert "cuda" in state_of(tmp_path / "cut")["random"]
    cut = train(resume=tmp_path / "cut", judge=Judge(SignalAfter(0, 0)), progress=False)
    for one, other in zip(whole.results, cut.results, strict=True):
        losses = {name: float(value or 0) for name, value in one.items() if name.startswith(("loss/", "lr"))}
        assert {name: float(other[name] or 0) for name in losses} == pytest.approx(losses, rel=error)


def test_a_state_from_a_machine_with_more_gpus_goes_on_here(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    options = config.model_copy(update={"device": "cuda"})
    judge = Judge(SignalAfter(1, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(make_model(), shapes, out=tmp_path, judge=judge, config=options, progress=False)
    state = state_of(tmp_path)
    state["random"]["cuda"] = state["random"]["cuda"] * 8
    torch.save(state, tmp_path / "state.pt")
    run = train(resume=tmp_path, judge=Judge(SignalAfter(0, 0)), progress=False)
    assert run.results[-1]["epoch"] == config.epochs


def test_a_run_that_was_cut_off_on_a_gpu_goes_on_without_one(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config.model_copy(update={"device": "auto", "precision": "fp32"})
    judge = Judge(SignalAfter(1, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(make_model(), shapes, out=tmp_path, judge=judge, config=options, progress=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    run = train(resume=tmp_path, judge=Judge(SignalAfter(0, 0)), progress=False)
    assert run.results[-1]["epoch"] == config.epochs


def test_as_many_images_as_fit_are_found_and_the_model_is_left_alone(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = fitting_batch(model, 64, torch.device("cuda"))
    assert 1 <= batch <= MOST
    assert batch == 1 or batch % 2 == 0
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_adapters_are_aligned_on_a_gpu_as_on_a_cpu(
    precision: str, test_data: Path, shapes: Path, tmp_path: Path
) -> None:
    weights = str(test_data / "weights" / "yolov5n.pt")
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        content = {
            "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
            "adapters": {"type": "conv"},
            "detector": {"graph": "yolov5n.yaml", "weights": weights},
        }
        model = build(content)
        stage = {"objective": "align", "train": ["adapters"], "arguments": {"fused": 1.0, "maps": 1.0}}
        own = "fp32" if device == "cpu" else precision
        steps = steps_of(model, shapes, tmp_path / device, device=device, precision=own, **stage)
        found.append([steps.step(batch) for batch in batches_of(shapes)[:2]])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=0.02 if precision == "fp32" else 0.15)


def test_a_loss_that_is_no_number_is_skipped_on_a_gpu(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    steps = steps_of(make_model(), shapes, tmp_path, device="cuda", precision="fp16")
    first, second, *_ = batches_of(shapes)
    with torch.no_grad():
        weight = steps.state.model.branches["detect"].layers[0].bias  # type: ignore[union-attr, index]
        kept = weight.clone()
        weight.fill_(math.nan)
    steps.step(first)
    assert steps.work.guard.skipped == 1
    assert not steps.gradients
    with torch.no_grad():
        weight.copy_(kept)
    steps.step(second)
    assert steps.work.guard.skipped == 1
    assert len(steps.gradients) == 1
