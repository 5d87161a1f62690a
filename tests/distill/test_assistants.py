"""Assistants of a plan: trained first, by their own stages, and then teaching; cut short and gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import exit_codes, start_pair
from safetensors.torch import load_file
from shape_runs import NAMES, POINTS, SCALED, SIDE, Marks, shape_config, shape_model, teacher_file

from mtyolo.checkpoint import load
from mtyolo.cli.main import main
from mtyolo.config.distill import TeacherConfig
from mtyolo.config.model import shipped_configs
from mtyolo.config.plan import PlanConfig, read_plan
from mtyolo.config.reading import read_yaml
from mtyolo.distill.lessons import Opened
from mtyolo.distill.objective import Course
from mtyolo.distill.teachers import Teacher
from mtyolo.errors import ConfigError, MtyoloError, StoreError
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.run import Run
from mtyolo.training.settings import settle
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

WIDTH = 0.1


def model_of(width: float) -> dict[str, Any]:
    graph = read_yaml(shipped_configs() / "yolov5n.yaml").content | {"width_multiple": width, "depth_multiple": 0.1}
    return {"detector": {"graph": graph}}


def stage_from(weights: str, name: str = "d", **options: Any) -> dict[str, Any]:
    return {"name": name, "augment": False, "distill": {"teachers": [{"weights": weights, "output": SCALED}]}} | options


def plan_of(teacher: str, **options: Any) -> dict[str, Any]:
    """Large to medium to small."""
    medium = {"name": "medium", "model": model_of(WIDTH), "epochs": 2, "stages": [stage_from(teacher)]} | options
    return {"assistants": [medium], "stages": [stage_from("medium")]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_file(tmp_path_factory.mktemp("teacher"))


def run_plan(plan: Mapping[str, Any] | str, shapes: Path, out: Path, judge: Judge | None = None, **options: Any) -> Run:
    return train(shape_model(), shapes, plan=plan, config=shape_config(**options), out=out, judge=judge, progress=False)


RANDOM = {"balance": "random"}
"""Weights of losses that are drawn, the assistant's and the student's."""


@pytest.fixture(scope="module")
def whole(teacher: str, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing interrupted."""
    torch.set_num_threads(1)
    plan, judge = plan_of(teacher, **RANDOM) | RANDOM, Judge(Marks(teacher=0.9, student=0.1))
    return run_plan(plan, shapes, tmp_path_factory.mktemp("whole"), judge)


def test_an_assistant_learns_first_and_then_teaches(teacher: str, shapes: Path, tmp_path: Path) -> None:
    marks = Marks(teacher=0.9, student=0.1)
    run = run_plan(plan_of(teacher), shapes, tmp_path / "run", Judge(marks))
    own = tmp_path / "run" / "assistants" / "medium"
    medium, small = load(own / "best.safetensors"), load(run.best)
    assert medium.names == small.names == NAMES
    assert sum(p.numel() for p in medium.parameters()) > sum(p.numel() for p in small.parameters())
    assert len((own / "results.csv").read_text().splitlines()) == 1 + 1 + 2, "a head, the start, and its own two epochs"
    teachers = [asked for asked, _ in marks.asked if isinstance(asked, Teacher)]
    sizes = [sum(p.numel() for p in one.parameters()) for one in teachers]
    assert sizes == [sum(p.numel() for p in load(path).parameters()) for path in (teacher, own / "best.safetensors")]
    taught = teachers[1].source.state_dict()
    assert all(torch.equal(taught[name], value) for name, value in medium.state_dict().items())


def test_epochs_of_the_first_stage_are_the_students(teacher: str, shapes: Path, tmp_path: Path) -> None:
    run = run_plan(plan_of(teacher), shapes, tmp_path / "run", epochs=3, freeze_epochs=1)
    assert len(run.results) == 1
    assert len((run.out / "assistants" / "medium" / "results.csv").read_text().splitlines()) == 1 + 2


def test_teachers_of_a_plan_without_a_file_are_found_from_anywhere(
    teacher: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Path(teacher).name
    monkeypatch.chdir(Path(teacher).parent)
    settings = settle(shape_model(), shapes, read_plan(plan_of(name)), shape_config(), None)
    found = PlanConfig.model_validate_json(settings.plan)
    assert found.assistants[0].teachers == [teacher]
    assert found.teachers[-1] == "medium"


def test_assistants_may_teach_assistants(teacher: str, shapes: Path, tmp_path: Path) -> None:
    plan = plan_of(teacher, epochs=1)
    second = {"name": "second", "model": model_of(0.05), "stages": [stage_from("medium")]}
    plan = {"assistants": [*plan["assistants"], second], "stages": [stage_from("second")]}
    marks = Marks(teacher=0.9, student=0.1)
    run_plan(plan, shapes, tmp_path / "run", Judge(marks))
    found = [asked.source.state_dict() for asked, _ in marks.asked if isinstance(asked, Teacher)]
    files = [teacher] + [tmp_path / "run" / "assistants" / name / "best.safetensors" for name in ("medium", "second")]
    for tensors, file in zip(found, files, strict=True):
        assert all(torch.equal(tensors[name], value) for name, value in load(file).state_dict().items())


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6])
def test_a_run_goes_on_bit_for_bit_wherever_it_was_cut(
    step: int, teacher: str, whole: Run, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six pictures in batches of three: the assistant's steps are 1 to 4, the student's 5 and 6."""
    from mtyolo.training import train as loop

    plan, whole_step, steps = plan_of(teacher, **RANDOM) | RANDOM, loop.training_step, []
    judge = Judge(Marks(teacher=0.9, student=0.1))

    def interrupted(*arguments: Any) -> bool:
        steps.append(1)
        return whole_step(*arguments) or len(steps) == step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        with pytest.raises(Interrupted, match=rf"--resume {tmp_path / 'cut'}$"):
            run_plan(plan, shapes, tmp_path / "cut", judge)
    cut = train(resume=tmp_path / "cut", judge=judge, progress=False)
    assert cut.results == whole.results
    for weights in ("last.safetensors", "assistants/medium/last.safetensors", "assistants/medium/best.safetensors"):
        one, other = load_file(whole.out / weights), load_file(cut.out / weights)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items()), weights


def test_a_run_that_was_moved_between_two_stages_of_one_assistant_ends_in_the_same_weights(
    teacher: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first has learned of the assistant's features goes on in the second."""
    from mtyolo.training import train as loop

    plan, begin, begun = plan_of(teacher, epochs=1), loop.begin_stage, []
    plan["stages"] = [stage_from("medium", name, epochs=1) for name in ("first", "second")]
    for stage in plan["stages"]:
        stage["distill"]["teachers"][0]["features"] = [{"method": "mgd"}]
    whole = run_plan(plan, shapes, tmp_path / "whole", epochs=2)

    def killed(*arguments: Any) -> None:
        begun.append(1)
        if len(begun) == 3:  # the assistant's stage was the first
            raise KeyboardInterrupt
        begin(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "begin_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, shapes, tmp_path / "cut", epochs=2)
    (tmp_path / "cut").rename(tmp_path / "moved")
    moved = train(resume=tmp_path / "moved", progress=False)
    assert moved.results == whole.results
    one, other = load_file(whole.last), load_file(moved.last)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_signal_after_an_assistants_last_step_stops_before_the_student(
    teacher: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtyolo.training import train as loop

    end_stage = loop.end_stage

    def signalled(*arguments: Any) -> None:
        end_stage(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "end_stage", signalled)
        with pytest.raises(Interrupted, match=rf"SIGTERM.*--resume {tmp_path / 'run'}$"):
            run_plan(plan_of(teacher), shapes, tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()
    assert len(train(resume=tmp_path / "run", progress=False).results) == 1


def test_what_is_trained_is_not_trained_again(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole.out, tmp_path / "run")
    weights = (tmp_path / "run/assistants/medium/last.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("mtyolo.training.train.training_step", lambda *_: pytest.fail("a step"))
    assert train(resume=tmp_path / "run", progress=False).results == whole.results
    assert (tmp_path / "run/assistants/medium/last.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{"name": "alone"}]}, "assistant 'medium' teaches nobody"),
        ({"assistants": "twice"}, "two assistants are called 'medium'"),
        ({"assistants": "early"}, "'medium' learns from 'second', which is not trained before it"),
        ({"assistants": "itself"}, "'medium' learns from 'medium', which is not trained before it"),
        ({"assistants": "path"}, "String should match pattern"),
    ],
)
def test_plans_that_can_not_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    medium = plan_of("teacher.pt")["assistants"][0]
    second = medium | {"name": "second"}
    lists = {
        "twice": [medium, medium],
        "early": [medium | {"stages": [stage_from("second")]}, second],
        "itself": [medium | {"stages": [stage_from("medium")]}],
        "path": [medium | {"name": "../medium"}],
    }
    plan = plan_of("teacher.pt") | change
    if isinstance(plan["assistants"], str):
        plan["assistants"] = lists[plan["assistants"]]
    with pytest.raises(ConfigError, match=message):
        read_plan(plan)


SECOND = {"name": "second", "model": "yolov5q.yaml", "stages": [stage_from("medium")]}
SMALL = {"name": "second", "model": model_of(0.05)}


def of_medium(**teacher: Any) -> dict[str, Any]:
    return {"name": "d", "augment": False, "distill": {"teachers": [{"weights": "medium", "output": SCALED} | teacher]}}


CACHED = {"name": "d", "distill": {"teachers": [{"weights": "medium", "output": SCALED, "cache": True}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "yolov5q.yaml"}, r"assistant 'medium'.*yolov5q.yaml"),
        ({"weights": "absent.pt"}, r"assistant 'medium'.*absent.pt"),
        ({"stages": [stage_from("absent.pt")]}, r"assistant 'medium'.*teacher absent.pt: no such file"),
        ({"stages": [stage_from("absent.pt", train=["detector.99"])]}, r"assistant 'medium'.*99"),
        ({"second": SECOND}, r"assistant 'second'.*yolov5q.yaml"),
        ({"student": [stage_from("medium"), stage_from("absent.pt", "e")]}, r"teacher absent.pt: no such file"),
        ({"student": [CACHED]}, r"stage 'd': distill: cache: true never meets the same picture twice"),
        (
            {"student": [of_medium(features=[{"method": "cwd", "layers": [99]}])]},
            r"stage 'd': .*layer 99 is not",
        ),
        ({"student": [of_medium(classes={"bal": "ball"})]}, r"stage 'd': teacher: classes: the student has no 'bal'"),
        ({"student": [of_medium(classes={"ball": "bal"})]}, r"stage 'd': teacher medium: classes: it has no 'bal'"),
        ({"student": [of_medium(size=70)]}, r"stage 'd': teacher medium: 70 pixels is no multiple"),
        (
            {"second": SMALL | {"stages": [of_medium(size=70)]}},
            r"assistant 'second': .*teacher medium: 70 pixels is no",
        ),
    ],
)
def test_what_is_wrong_is_said_before_an_assistant_is_trained(
    change: dict[str, Any], message: str, teacher: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = dict(change)
    student, second = change.pop("student", None), change.pop("second", None)
    plan = plan_of(teacher, **change)
    plan["assistants"] += [second] if second else []
    plan["stages"] = student or [stage_from("second" if second else "medium")]
    monkeypatch.setattr("mtyolo.training.train.training_step", lambda *_: pytest.fail("a step"))
    with pytest.raises(ConfigError, match=message):
        run_plan(plan, shapes, tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_store_that_does_not_fit_is_said_before_an_assistant_is_trained(
    teacher: str, shapes: Path, tmp_path: Path
) -> None:
    config = shape_config()
    with pytest.raises(StoreError, match="takes images and not features"):
        train(shape_model(), shapes, plan=plan_of(teacher), config=config, out=tmp_path / "run", features=tmp_path)
    assert not (tmp_path / "run" / "assistants").exists()


def test_an_assistant_that_needs_labels_is_refused_before_the_one_before_it_is_trained(
    teacher: str, shapes: Path, tmp_path: Path
) -> None:
    plan = plan_of(teacher, epochs=1)
    second = {"name": "second", "model": model_of(0.05), "stages": [{"name": "labels"}]}
    plan["assistants"].append(second)
    plan["stages"].append(stage_from("second", "again"))
    for stage in (*plan["assistants"][0]["stages"], *plan["stages"]):
        stage["distill"]["hard"] = 0
    with pytest.raises(MtyoloError, match=r"assistant 'second': .*stage 'labels' learns"):
        run_plan(plan, shapes.parent / "images" / "train", tmp_path / "run")
    assert not (tmp_path / "run" / "assistants").exists()


def test_an_assistant_may_know_points_that_the_student_does_not(teacher: str, shapes: Path, tmp_path: Path) -> None:
    model = model_of(WIDTH) | {"tasks": {"detect": {}, "keypoint": {}}}
    run_plan(plan_of(teacher, model=model, epochs=1), shapes, tmp_path / "run")
    assert load(tmp_path / "run/assistants/medium/last.safetensors").keypoints == POINTS


def test_a_model_beside_the_plan_is_found_and_kept(teacher: str, shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "medium.yaml").write_text(yaml.safe_dump(model_of(WIDTH)))
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan_of(teacher, model="medium.yaml", epochs=1)))
    settings = settle(shape_model(), shapes, folder / "plan.yaml", None, None)
    (assistant,) = PlanConfig.model_validate_json(settings.plan).assistants
    assert isinstance(assistant.model, dict)
    assert assistant.model["detector"]["graph"]["width_multiple"] == WIDTH


def test_teachers_beside_the_plan_are_found_from_anywhere(
    teacher: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plans"
    (folder / "saved").mkdir(parents=True)
    shutil.copy(teacher, folder / "large.safetensors")
    plan = plan_of("large.safetensors", model=model_of(WIDTH), epochs=1)
    last = plan["stages"][-1]["distill"]["teachers"]
    last += [{"weights": name, "output": SCALED} for name in ("saved", "nowhere.pt")]
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    monkeypatch.chdir(tmp_path)
    found = read_plan("plans/plan.yaml")
    assert found.assistants[0].teachers == [str(folder / "large.safetensors")]
    assert found.teachers[-3:] == ["medium", str(folder / "saved"), "nowhere.pt"]
    (tmp_path / "nowhere.pt").mkdir()  # where one stands
    (folder / "yolov5n").mkdir()  # is no model file
    plan["assistants"][0] |= {"model": "yolov5n.yaml", "weights": "yolov5n"}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    found = read_plan("plans/plan.yaml")
    assert found.teachers[-1] == str(tmp_path / "nowhere.pt")
    assert found.assistants[0].model == str(shipped_configs() / "yolov5n.yaml")
    assert found.assistants[0].weights == "yolov5n"
    plan["assistants"][0] |= {"model": model_of(WIDTH), "weights": None}
    del last[1:]
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert run_plan("plans/plan.yaml", shapes, tmp_path / "run").results


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("best.safetensors", "best"),
        ("runs/assistants/medium/best.safetensors", "medium"),
        ("exp1/weights/best.pt", "exp1"),
        ("weights/yolov5s.pt", "yolov5s"),
    ],
)
def test_a_teacher_is_called_by_what_tells_it_apart(weights: str, name: str) -> None:
    config = TeacherConfig.model_validate({"weights": weights, "output": SCALED})
    assert Course(config, Opened(None, None, (), {}, (), None), []).name == name  # type: ignore[arg-type]


def test_the_shipped_plan_runs_with_a_teacher_put_in(teacher: str, shapes: Path, tmp_path: Path) -> None:
    plan = json.loads(read_plan("distill-in-two-steps").model_dump_json().replace("yolov5l.pt", teacher))
    run = run_plan(plan, shapes, tmp_path / "run")
    assert float(run.results[-1]["loss/distill.scaled"] or 0) > 0
    assert load(run.out / "assistants" / "medium" / "last.safetensors").config.detector.graph["width_multiple"] == 0.5


def commanded(folder: Path, arguments: list[str]) -> None:
    """What a process of a group says goes to a file of its own."""
    with (folder / f"said by {os.environ['RANK']}").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(arguments)
    sys.exit(code)


def test_in_two_processes_the_student_follows_its_assistant(teacher: str, shapes: Path, tmp_path: Path) -> None:
    plan = plan_of(teacher, epochs=1)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(model_of(0.05)))
    options = f"--imgsz {SIDE} --batch 4 --epochs 1 --workers 0 --device cpu --out {tmp_path / 'run'}"
    call = f"train -m {tmp_path / 'student.yaml'} -d {shapes} --plan {tmp_path / 'plan.yaml'} {options}"
    codes = exit_codes(start_pair(commanded, tmp_path, call.split()))
    said = [(tmp_path / f"said by {rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], said
    assert "assistant medium: begins" in said[0]
    assert "the student's turn" in said[0]
    assert "weights to use" in said[0]
    assert not re.search("assistant|weights to use", said[1]), "only the first process speaks"
    assert (tmp_path / "run" / "best.safetensors").exists()
