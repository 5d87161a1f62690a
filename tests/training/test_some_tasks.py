"""`tasks:` of a stage: what is not named there stands still, whatever trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from one_step import batches_of, steps_of
from torch import Tensor

from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

SEGMENT = "branches.segment."


def trained(model: Model, data: Path, config: TrainConfig, out: Path, **plan: Any) -> dict[str, dict[str, Tensor]]:
    """The weights and their average, after a stage in which detect and keypoint count."""
    stage = {"name": "two", "tasks": ["detect", "keypoint"], "lr": 0.01}
    heavy = config.model_copy(update={"weight_decay": 0.1})
    run = train(model, data, plan={"stages": [stage], **plan}, config=heavy, out=out, progress=False)
    assert {"loss/detect", "loss/keypoint"} <= set(run.results[-1])
    assert not [name for name in run.results[-1] if "segment" in name]
    state = torch.load(run.out / "state.pt", weights_only=True)
    ema = {name.removeprefix("module."): value for name, value in state["ema"].items()}
    return {"weights": state["model"], "average": ema}


@pytest.mark.parametrize("balance", ["fixed", "uncertainty", "gradnorm", "pcgrad"])
def test_the_weights_of_a_branch_whose_task_does_not_count_stay_to_the_bit_and_all_others_move(
    balance: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for after in trained(model, shapes, config, tmp_path, balance=balance).values():
        stayed = {name for name, value in before.items() if torch.equal(value, after[name])}
        assert stayed == {name for name in before if name.startswith(SEGMENT)}


def test_the_statistics_of_a_branch_whose_task_does_not_count_stay_to_the_bit(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.named_buffers() if name.startswith(SEGMENT)}
    after = trained(model, shapes, config, tmp_path)["weights"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_gradient_and_no_state_of_the_optimiser_belongs_to_a_task_that_does_not_count(
    optimizer: str, make_model: MakeModel, shapes: Path, tmp_path: Path
) -> None:
    model = make_model()
    steps = steps_of(model, shapes, tmp_path, tasks=["detect", "keypoint"], optimizer=optimizer)
    for batch in batches_of(shapes)[:2]:
        steps.step(batch)
    for name, parameter in model.named_parameters():
        learns = not name.startswith(SEGMENT)
        assert all((name in gradients) == learns for gradients in steps.gradients), name
        assert (parameter in steps.work.optimizer.state) == learns, name


def test_a_task_that_the_model_lacks_is_named(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    model = make_model()
    del model.branches["segment"]
    with pytest.raises(ConfigError, match=r"stage 'one': the model has no task 'segment'; it has detect, keypoint"):
        steps_of(model, shapes, tmp_path, tasks=["detect", "segment"])


def test_a_weight_for_a_branch_that_the_model_lacks_is_named_once(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"task_weights": {"detect": 2, "keypoint": 0.5}, "stages": [{"name": "one"}, {"name": "two"}]}
    for lacking, lines in (((), 0), (("keypoint",), 1)):
        model = make_model()
        for task in lacking:
            del model.branches[task]
        train(model, shapes, plan=plan, config=config, out=tmp_path / str(lines))
        line = "task_weights: no effect for keypoint, which the model has no branch for"
        assert capsys.readouterr().out.count(line) == lines


def test_a_branch_without_labels_in_the_data_stands_still_too(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """Its norms would drift otherwise, with nothing to correct the weights behind them."""
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent), "tasks": ["detect", "keypoint"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = train(model, tmp_path / "data.yaml", config=config, out=tmp_path / "run", progress=False)
    after = torch.load(run.out / "state.pt", weights_only=True)["model"]
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layers", "detect", "keypoint"}
