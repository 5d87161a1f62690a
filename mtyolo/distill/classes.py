"""The student's classes among the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

from mtyolo.config.distill import TeacherConfig
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError


def class_columns(
    config: TeacherConfig, student: Mapping[int, str], teacher: Mapping[int, str], *, all_needed: bool
) -> list[int | None]:
    """For each class of the student its number at the teacher. Raises ConfigError for one that it does not know.

    all_needed: false where only masks, keypoints or features are learned.
    """
    if config.classes == "by-number":
        if len(student) != len(teacher):
            raise ConfigError(
                f"teacher {config.weights}: has {len(teacher)} classes, the student {len(student)}; by-number needs as "
                "many: map names instead"
            )
        return list(range(len(student)))
    renamed = config.classes if isinstance(config.classes, dict) else {}
    unknown = next((name for name in renamed if name not in student.values()), None)
    if unknown is not None:
        raise ConfigError(f"teacher: classes: the student has no {unknown!r}; {nearest(unknown, student.values())}")
    numbers = {name: number for number, name in teacher.items()}
    foreign = next((name for name in renamed.values() if name not in numbers), None)
    if foreign is not None:
        raise ConfigError(f"teacher {config.weights}: classes: it has no {foreign!r}; {nearest(foreign, numbers)}")
    columns = [numbers.get(renamed.get(student[number], student[number])) for number in sorted(student)]
    missing = [student[number] for number, column in zip(sorted(student), columns, strict=True) if column is None]
    if missing and (all_needed or (config.output and len(missing) == len(columns))):
        raise ConfigError(
            f"teacher {config.weights}: does not know {len(missing)} of {len(columns)} classes, first {missing[0]!r}; "
            + _remedy(student, missing[0], numbers)
        )
    return columns


def _remedy(student: Mapping[int, str], missing: str, numbers: Mapping[str, int]) -> str:
    if only_numbered(student):
        return (
            f"the student's are mere numbers, and the teacher has {len(numbers)}: name them in the model file, names: "
            "{0: its name, …}, or take as many, with classes: by-number"
        )
    return f"{nearest(missing, numbers)}; map names that differ with classes: {{{missing}: its name}}"


def only_numbered(names: Mapping[int, str]) -> bool:
    """Are these the numbers that stand for names where nobody gave any?"""
    return all(name == str(number) for number, name in names.items())
