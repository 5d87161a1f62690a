"""Teachers are validated before hours are spent: what is said of those that are hardly better than the student."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from shape_runs import ALL_TASKS, SCALED, Marks, distilled, distiller_of, shape_config, shape_model, teacher_file

from mtyolo.checkpoint import load
from mtyolo.data.split import load_split
from mtyolo.distill.teachers import Teacher
from mtyolo.evaluation.validate import validate
from mtyolo.training.objectives.alignment import without_labels
from mtyolo.training.objectives.distilling import teacher_reports
from mtyolo.training.records.judging import Judge
from mtyolo.training.train import train


def reports(weights: str, shapes: Path, marks: Marks, *, output: dict[str, float], check: bool = True) -> list[str]:
    student = shape_model(**ALL_TASKS)
    distiller = distiller_of(student, {"weights": weights, "output": output}, check=check)
    judge, split = Judge(marks), load_split(shapes, "val")
    return list(teacher_reports(distiller, judge, student, split, shape_config(), None))


@pytest.mark.parametrize(
    ("teacher", "student", "warned"),
    [(0.5, 0.46, True), (0.3, 0.5, True), (0.04, 0.0, True), (0.05, 0.0, False), (0.5, 0.44, False)],
)
def test_a_teacher_that_is_not_five_points_better_is_warned_of(
    teacher: float, student: float, warned: bool, shapes: Path, tmp_path: Path
) -> None:
    (line,) = reports(teacher_file(tmp_path), shapes, Marks(teacher, student), output=SCALED)
    assert line.startswith("warning:") == warned
    assert f"teacher teacher1: detect {teacher:.3f}, the student {student:.3f}" in line
    assert ("less than 5 points better" in line) == warned


def test_nothing_is_said_where_the_split_has_nothing_to_find(shapes: Path, tmp_path: Path) -> None:
    assert reports(teacher_file(tmp_path), shapes, Marks(math.nan, math.nan), output=SCALED) == []


def test_without_the_check_nobody_is_validated(shapes: Path, tmp_path: Path) -> None:
    marks = Marks(0.1, 0.9)
    assert reports(teacher_file(tmp_path), shapes, marks, output=SCALED, check=False) == []
    assert marks.asked == []


@pytest.mark.parametrize(
    ("output", "tasks"),
    [({"masks": 1.0}, ("segment",)), ({"keypoints": 1.0, "kl": 1.0}, ("keypoint", "detect"))],
)
def test_teacher_and_student_are_judged_on_what_the_teacher_teaches(
    output: dict[str, float], tasks: tuple[str, ...], shapes: Path, tmp_path: Path
) -> None:
    marks = Marks(0.9, 0.1)
    (line,) = reports(teacher_file(tmp_path, **ALL_TASKS), shapes, marks, output=output)
    assert [(isinstance(model, Teacher), asked) for model, asked in marks.asked] == [(True, tasks), (False, tasks)]
    assert f"{', '.join(tasks)} 0.900, the student 0.100" in line


def test_a_teacher_is_validated_like_a_model(shapes: Path, tmp_path: Path) -> None:
    """The real validation, of all three tasks."""
    student, weights = shape_model(**ALL_TASKS), teacher_file(tmp_path, **ALL_TASKS)
    distiller = distiller_of(student, {"weights": weights, "output": SCALED | {"masks": 1.0, "keypoints": 1.0}})
    judge, split = Judge(validate), load_split(shapes, "val")
    (line,) = teacher_reports(distiller, judge, student, split, shape_config(), None)
    assert "detect, segment, keypoint 0." in line
    teacher = distiller.courses[0].opened.teacher
    assert teacher is not None
    found = validate(teacher, split, size=64).tasks
    expected = validate(load(weights), split, size=64).tasks
    assert repr(found) == repr(expected), "in words, as NaN equals nothing"


def test_each_teacher_has_a_line_of_its_own(shapes: Path, tmp_path: Path) -> None:
    student = shape_model()
    teachers = [{"weights": teacher_file(tmp_path, seed), "output": SCALED} for seed in (1, 2)]
    judge, split = Judge(Marks(0.9, 0.1)), load_split(shapes, "val")
    lines = list(teacher_reports(distiller_of(student, *teachers), judge, student, split, shape_config(), None))
    assert [line.split(":")[0] for line in lines] == ["teacher teacher1", "teacher teacher2"]


def test_a_later_stages_teacher_is_checked_before_the_first_trains(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And once more when it begins, beside what the student has become."""
    distill = {"teachers": [{"weights": teacher_file(tmp_path), "output": SCALED}]}
    plan = {"stages": [{"name": "alone"}, {"name": "taught", "distill": distill}]}
    config, judge = shape_config(batch=6, epochs=2), Judge(Marks(0.3, 0.29))
    train(shape_model(), shapes, plan=plan, config=config, out=tmp_path / "run", judge=judge)
    warning = "warning: teacher teacher1: detect 0.300, the student 0.290"
    before, between = capsys.readouterr().out.split("1/2 · alone", 1)
    assert (before.count(warning), between.count(warning)) == (1, 1)


def test_it_is_said_why_a_teacher_is_not_checked(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, saved = teacher_file(tmp_path, **ALL_TASKS), str(tmp_path / "saved")
    config, judge = shape_config(batch=6), Judge(Marks(0.9, 0.1))
    for name, teacher in (("one", {"weights": weights, "cache": True, "folder": saved}), ("two", {"weights": saved})):
        distill = {"teachers": [teacher | {"output": SCALED}]}
        distilled(shape_model(), shapes, tmp_path / name, distill, config=config, judge=judge, progress=True)
    assert "teacher saved: not checked: saved outputs are of the pictures" in capsys.readouterr().out
    student, split = shape_model(**ALL_TASKS), without_labels(load_split(shapes, "val"))
    distiller = distiller_of(student, {"weights": weights, "output": {"masks": 1.0}})
    (line,) = teacher_reports(distiller, judge, student, split, config, None)
    assert line == "teacher teacher1: not checked: val has no labels for segment"


@pytest.mark.parametrize(("check", "expected"), [(True, 1), (False, 0)])
def test_a_run_warns_before_its_first_epoch(
    check: bool, expected: int, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill = {"teachers": [{"weights": teacher_file(tmp_path), "output": SCALED}], "check": check}
    config = shape_config(batch=6)
    judge = Judge(Marks(0.3, 0.29))
    distilled(shape_model(), shapes, tmp_path / "run", distill, config=config, judge=judge, progress=True)
    said = capsys.readouterr().out
    before, after = said.split("1/1 · d", 1)
    assert before.count("warning: teacher teacher1: detect 0.300, the student 0.290") == expected
    assert "warning" not in after
