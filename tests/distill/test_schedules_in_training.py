"""Schedules, the rule of three times and dynamic weights in runs of a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shape_runs import SCALED, Verdict, distilled, shape_config, shape_model, teacher_file

from mtyolo.config.data import DataConfig
from mtyolo.errors import ConfigError
from mtyolo.training.batches.splits import Data
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.run import Run
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

STANDSTILL = {"lr": 1e-12}
"""With all pictures in one batch, losses are the same in every epoch then."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_file(tmp_path_factory.mktemp("teacher"))


def weights_of(run: Run) -> list[tuple[float, float]]:
    """Soft and hard of each epoch: what the balanced losses are to the sums of their parts."""

    def factor(row: dict[str, Any], name: str) -> float:
        parts = [float(value) for key, value in row.items() if key.startswith(f"loss/{name}.")]
        return float(row[f"loss/{name}"]) / sum(parts)

    return [(factor(row, "distill"), factor(row, "detect")) for row in run.results]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "phases"}, [(0.3, 0.7), (0.7, 0.3), (0.7, 0.3), (0.7, 0.3), (0.5, 0.5)]),
        ({"schedule": "cosine", "soft": 2.0, "hard": 0.5}, [(1.8, 0.05), (1.0, 0.25), (0.2, 0.45)]),
        ({"ramp": 2}, [(0.5, 1), (1, 1), (1, 1)]),
    ],
)
def test_soft_and_hard_weights_of_each_epoch_are_the_schedules(
    options: dict[str, Any], expected: list[tuple[float, float]], weights: str, shapes: Path, tmp_path: Path
) -> None:
    distill = {"teachers": [{"weights": weights, "output": SCALED | {"kl": 1.0}}], **options}
    run = distilled(shape_model(), shapes, tmp_path / "run", distill, config=shape_config(len(expected), batch=6))
    for found, wanted in zip(weights_of(run), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_schedule_counts_the_epochs_of_its_own_stage(weights: str, shapes: Path, tmp_path: Path) -> None:
    distill = {"teachers": [{"weights": weights, "output": SCALED}], "schedule": "linear"}
    stages = [{"name": name, "epochs": 2, "augment": False, "distill": distill} for name in ("first", "second")]
    plan, config = {"stages": stages}, shape_config(batch=6)
    run = train(shape_model(), shapes, plan=plan, config=config, out=tmp_path / "run", progress=False)
    assert [soft for soft, _ in weights_of(run)] == pytest.approx([0.9, 0.1] * 2, rel=1e-5)


def test_the_rate_is_halved_in_the_epoch_after_a_loss_of_three_times_the_teachers(
    weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(name: str, teachers_loss: float, *, three_times: bool = True) -> list[float]:
        monkeypatch.setattr("mtyolo.distill.objective.detection_loss", lambda *_: torch.tensor(teachers_loss))
        distill = {"teachers": [{"weights": weights, "output": SCALED}], "three_times": three_times}
        run = distilled(shape_model(), shapes, tmp_path / name, distill, config=shape_config(2))
        return [float(row["lr"] or 0) for row in run.results]

    first, second = rates("plain", 1e-9, three_times=False)
    assert rates("exceeded", 1e-9) == pytest.approx([first, 0.5 * second])
    assert rates("not exceeded", 1e9) == pytest.approx([first, second])


def test_the_rate_stays_where_no_label_says_what_the_teachers_loss_is(
    weights: str, shapes: Path, tmp_path: Path
) -> None:
    pictures, rates = shapes.parent / "images" / "train", []
    for three_times in (False, True):
        teacher = {"weights": weights, "output": {"kl": 1e-9}}
        distill, out = {"teachers": [teacher], "three_times": three_times}, tmp_path / f"run-{three_times}"
        run = distilled(shape_model(), pictures, out, distill, config=shape_config(2, batch=6))
        rates.append([row["lr"] for row in run.results])
    assert rates[0] == rates[1]


class Course:
    """A validation that finds one fitness after the other."""

    def __init__(self, fitness: Sequence[float]) -> None:
        self.left = list(fitness)

    def __call__(self, *arguments: Any, **options: Any) -> Verdict:
        return Verdict(self.left.pop(0))


MISSED = (0.0, 0.1, 0.2, 0.21, 0.3, 0.4)
"""Before training and after each of five epochs: the third rises by less than the second."""
NOT_MISSED = (0.0, 0.1, 0.2, 0.4, 0.5, 0.6)


def dynamic(weights: str, data: Data, out: Path, judge: Judge | None) -> Run:
    distill = {
        "teachers": [{"weights": weights, "output": SCALED | {"kl": 1.0}}],
        "dynamic": True,
        "check": False,
    }
    config = shape_config(5, batch=6)
    return distilled(shape_model(), data, out, distill, config=config, judge=judge, stage=STANDSTILL)


def losses_of(run: Run, term: str) -> list[float]:
    """Of each epoch, as parts of the first one's."""
    losses = [float(row[f"loss/distill.{term}"] or 0) for row in run.results[1:]]
    return [loss / losses[0] for loss in losses]


@pytest.fixture(scope="module")
def whole(weights: str, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose first trial fails, and that nothing interrupted."""
    torch.set_num_threads(1)
    return dynamic(weights, shapes, tmp_path_factory.mktemp("whole"), Judge(Course(MISSED)))


def test_dynamic_weights_take_a_term_back_that_is_missed_and_try_the_next(whole: Run) -> None:
    assert losses_of(whole, "scaled") == pytest.approx([1, 1, 0.5, 1, 1], rel=1e-3)
    assert losses_of(whole, "kl") == pytest.approx([1, 1, 1, 1, 0.5], rel=1e-3)


def test_dynamic_weights_leave_a_term_at_half_that_is_not_missed(weights: str, shapes: Path, tmp_path: Path) -> None:
    run = dynamic(weights, shapes, tmp_path / "run", Judge(Course(NOT_MISSED)))
    assert losses_of(run, "scaled") == pytest.approx([1, 1, 0.5, 0.5, 0.5], rel=1e-3)
    assert losses_of(run, "kl") == pytest.approx([1, 1, 1, 1, 0.5], rel=1e-3)


@pytest.mark.parametrize("lacking", ["val", "labels", "objects", "judge"])
def test_dynamic_weights_need_a_validation_to_say_what_helps(
    lacking: str, weights: str, shapes: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    if lacking in ("val", "labels"):
        del content["annotations"]["val"]
    if lacking == "objects":
        labels = (shapes.parent / "annotations" / "val.json").read_text().replace('"iscrowd": 0', '"iscrowd": 1')
        (tmp_path / "val.json").write_text(labels)
        content["annotations"]["val"] = str(tmp_path / "val.json")
    if lacking == "val":
        del content["val"]
    judge = None if lacking == "judge" else Judge(Course(MISSED))
    with pytest.raises(ConfigError, match=r"stage 'd': distill: dynamic asks the validation metric .*a val split with"):
        dynamic(weights, DataConfig.model_validate(content), tmp_path / "run", judge)
    assert not (tmp_path / "run").exists()


def test_dynamic_weights_are_in_the_state_and_go_on_from_there(
    whole: Run, weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtyolo.training import train as loop

    judge, step, steps = Judge(Course(MISSED)), loop.training_step, []

    def interrupted(*arguments: Any) -> bool:
        steps.append(1)
        return step(*arguments) or len(steps) == 3

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        with pytest.raises(Interrupted):
            dynamic(weights, shapes, tmp_path / "cut", judge)
    saved = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["work"]["distiller"]["dynamic"]
    assert saved["factors"] == {"distill.scaled": 0.5, "distill.kl": 1.0}
    assert saved["on_trial"] == "distill.scaled"
    cut = train(data=shapes, resume=tmp_path / "cut", judge=judge, progress=False)
    assert cut.results == whole.results
