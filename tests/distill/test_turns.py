"""Teachers that are asked in every so-manieth batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import SCALED, distilled, distiller_of, shape_batch, shape_config, shape_model, teacher_file
from torch import Tensor

from mtyolo.config.plan import read_plan
from mtyolo.config.training import LossGains
from mtyolo.distill.lessons import LiveLessons
from mtyolo.distill.schedules import Turns
from mtyolo.errors import ConfigError
from mtyolo.training.distilling import DistilledObjective
from mtyolo.training.objectives import TasksObjective


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return teacher_file(tmp_path)


def objective(weights: str, every: int, tasks: tuple[str, ...] = ("detect",)) -> tuple[DistilledObjective, Any]:
    student = shape_model()
    distiller = distiller_of(student, {"weights": weights, "output": SCALED}, every=every, hard=0.5)
    return DistilledObjective(TasksObjective(tasks, LossGains()), distiller), student


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_so_manieth_batch_is_the_teachers(every: int) -> None:
    turns = Turns(every)
    assert [turns.take() for _ in range(6)] == [number % every == 0 for number in range(6)]


def test_turns_go_on_where_they_were_saved() -> None:
    turns, other = Turns(3), Turns(3)
    turns.take()
    other.load_state_dict(turns.state_dict())
    assert [other.take() for _ in range(3)] == [False, False, True]


def test_over_its_batches_a_term_pulls_as_if_it_were_always_asked(weights: str, shapes: Path) -> None:
    batch, always = shape_batch(shapes), objective(weights, 1)
    asked = always[0](always[1], batch)
    sometimes, student = objective(weights, 3)
    found = [sometimes(student, batch) for _ in range(3)]
    assert [set(losses.tasks) for losses in found] == [{"detect", "distill"}, {"detect"}, {"detect"}]
    assert found[0].tasks["distill"].item() == pytest.approx(3 * asked.tasks["distill"].item(), rel=1e-5)
    assert found[0].components["distill.scaled"] == asked.components["distill.scaled"]
    for losses in found:
        assert losses.tasks["detect"].item() == pytest.approx(asked.tasks["detect"].item(), rel=1e-5)
        assert losses.shared


def test_in_training_teachers_are_asked_half_as_often(
    weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[int]] = {1: [], 2: []}
    ask = LiveLessons.ask
    for every, counted in asked.items():

        def counting(lessons: LiveLessons, images: Tensor, *host: Tensor | None, into: list[int] = counted) -> Any:
            into.append(len(images))
            return ask(lessons, images, *host)

        monkeypatch.setattr(LiveLessons, "ask", counting)
        distill = {"teachers": [{"weights": weights, "output": SCALED}], "every": every}
        run = distilled(shape_model(), shapes, tmp_path / str(every), distill, config=shape_config(epochs=2, batch=1))
        for row in run.results:
            assert float(row["loss/distill"]) == pytest.approx(every * float(row["loss/distill.scaled"]), rel=1e-5)
    assert len(asked[1]) > 2
    assert len(asked[2]) == -(-len(asked[1]) // 2), "also where an epoch has an odd number of batches"


def test_batches_in_between_need_labels(weights: str) -> None:
    distill = {"teachers": [{"weights": weights, "output": SCALED}], "every": 2, "hard": 0}
    with pytest.raises(ConfigError, match=r"every: batches without the teachers have only labels to learn from"):
        read_plan({"stages": [{"name": "d", "distill": distill}]})
    with pytest.raises(ConfigError, match=r"every: no task has labels for the batches without the teachers"):
        objective(weights, 2, tasks=())
    objective(weights, 1, tasks=())


def test_every_is_a_number_of_batches(weights: str) -> None:
    distill = {"teachers": [{"weights": weights, "output": SCALED}], "every": 0}
    with pytest.raises(ConfigError, match=r"distill\.every: .*greater than"):
        read_plan({"stages": [{"name": "d", "distill": distill}]})


def test_a_batch_remembers_where_its_pictures_came_from(shapes: Path) -> None:
    batch = shape_batch(shapes)
    moved = batch.to("meta")
    assert moved.images is not None
    assert moved.images.device.type == "meta"
    assert moved.on_host is batch.images
    assert moved.to("meta").on_host is batch.images
    assert isinstance(batch.images, torch.Tensor)
