"""What terms of teachers learn goes on in the next stage, also of a run that was cut off anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import distiller_of, shape_config, shape_model, teacher_file
from torch import Tensor

from mtyolo.distill.handover import Learned, hand_over, learned_by
from mtyolo.distill.objective import Distiller
from mtyolo.training import train as loop
from mtyolo.training.records.run import Run
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

MGD: dict[str, Any] = {"method": "mgd"}
RUN = Path("run")
STEPS = 2
"""Of a stage: six pictures in threes."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_file(tmp_path_factory.mktemp("teacher"))


def two_stages(weights: str, shapes: Path, out: Path) -> Run:
    stage = {"augment": False, "distill": {"teachers": [{"weights": weights, "features": [MGD]}]}}
    stages = [{"name": "first", "epochs": 1, "freeze": ["detector.2"]}, {"name": "second", "epochs": 1}]
    plan = {"stages": [one | stage for one in stages]}
    return train(shape_model(), shapes, plan=plan, config=shape_config(2), out=out, progress=False)


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)  # type: ignore[no-any-return]


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stage_begins_with_what_the_one_before_it_has_learned(
    weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Tensor]] = []
    begin = loop.begin_stage

    def noted(state: Any, stage: Any, work: Any, tools: Any) -> None:
        begun.append({name: tensor.clone() for name, tensor in work.distiller.learned.state_dict().items()})
        ended.append({place: dict(tensors) for place, tensors in state_of(tmp_path / "run")["learned"].items()})
        begin(state, stage, work, tools)

    ended: list[Learned] = []
    monkeypatch.setattr(loop, "begin_stage", noted)
    two_stages(weights, shapes, tmp_path / "run")
    assert ended[0] == {}
    first, second = begun
    assert not any(torch.equal(first[name], second[name]) for name in first), "it has learned"
    assert len(ended[1]) == 3, "layers"
    learned = [tensor for tensors in ended[1].values() for tensor in tensors.values()]
    assert all(torch.equal(one, other) for one, other in zip(learned, second.values(), strict=True))


@pytest.fixture(scope="module")
def whole(weights: str, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a run that nothing cut off."""
    torch.set_num_threads(1)
    return state_of(two_stages(weights, shapes, tmp_path_factory.mktemp("whole")).out)


@pytest.mark.parametrize("place", ["step 1", "step 2", "step 3", "step 4", "end_stage", "begin_stage"])
def test_a_run_cut_off_anywhere_ends_in_the_same_weights(
    place: str, whole: dict[str, Any], weights: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of a stage, after its last batch, and between two: before one is ended, and when it is."""
    with monkeypatch.context() as patch:
        if place.startswith("step"):
            _stop_in_step(int(place[-1]), patch)
        else:
            _crash_at(place, 1 if place == "end_stage" else 2, patch)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            two_stages(weights, shapes, tmp_path / "cut")
    position = state_of(tmp_path / "cut")["position"]
    assert position["stage"] == (1 if place in ("step 3", "step 4", "begin_stage") else 0)
    train(resume=tmp_path / "cut", progress=False)
    cut = state_of(tmp_path / "cut")
    assert same(whole["model"], cut["model"])
    assert whole["learned"].keys() == cut["learned"].keys()
    assert all(same(tensors, cut["learned"][place]) for place, tensors in whole["learned"].items())


def _stop_in_step(number: int, patch: pytest.MonkeyPatch) -> None:
    step, done = loop.training_step, []

    def interrupted(*arguments: Any) -> bool:
        done.append(1)
        return step(*arguments) or len(done) == number

    patch.setattr(loop, "training_step", interrupted)


def _crash_at(name: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """As with kill -9: what is on the disk by then is all there is."""
    real, called = getattr(loop, name), []

    def crashing(*arguments: Any) -> None:
        called.append(1)
        if len(called) == number:
            raise KeyboardInterrupt
        real(*arguments)

    patch.setattr(loop, name, crashing)


@pytest.mark.parametrize(
    ("features", "taken"),
    [
        ([MGD | {"weight": 1.0}], 3),
        ([MGD | {"layers": [17, 20]}], 2),
        ([MGD | {"layers": {17: 20}}], 0),
        ([{"method": "fitnets"}], 0),
        ([MGD, MGD], 3),
    ],
    ids=str,
)
def test_only_the_same_term_at_the_same_layers_takes_it(features: list[Any], taken: int, weights: str) -> None:
    learned = learned_by(distiller(weights, [MGD]), RUN)
    assert len(learned) == 3
    before = dict(learned)
    new = distiller(weights, features)
    hand_over(learned, new, RUN)
    assert len(before) - len(learned) == taken
    found = learned_by(new, RUN)
    assert all(same(found[place], before[place]) for place in before.keys() - learned.keys())


def test_other_teachers_and_other_shapes_begin_anew(tmp_path: Path) -> None:
    weights = teacher_file(tmp_path)
    learned = learned_by(distiller(weights, [MGD]), RUN)
    hand_over(learned, distiller(teacher_file(tmp_path, seed=2), [MGD]), RUN)
    hand_over(learned, None, RUN)
    assert len(learned) == 3
    teacher_file(tmp_path, width=0.1)  # in place of the first
    hand_over(learned, distiller(weights, [MGD]), RUN)
    assert len(learned) == 3


def distiller(weights: str, features: list[Any]) -> Distiller:
    return distiller_of(shape_model(), {"weights": weights, "features": features})
