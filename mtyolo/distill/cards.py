"""What a folder of a teacher's outputs says about itself, compared with what a run needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtyolo.config.distill import CACHE, KIND
from mtyolo.distill.teachers import Teacher
from mtyolo.errors import StoreError
from mtyolo.files import write_whole
from mtyolo.graph.families import FamilyModel
from mtyolo.model import Model

CARD = "teacher.json"
FORMAT = "mtyolo-teacher/2"
KIND_LETTERS = 16
"""Of the hash that tells one teacher's folder from another's."""
WHOLE = {"pool": 1}
"""Of feature maps, where a card does not mention it."""


def card_of(teacher: Teacher, weights: Path, imgsz: int) -> dict[str, Any]:
    """What makes a teacher's outputs what they are, in the student's layout."""
    card = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "size": teacher.size or imgsz,
        "columns": list(teacher.columns),
        "layers": list(teacher.recorded),
    }
    if isinstance(teacher.source, FamilyModel):
        card["decoded"] = "in single precision"  # earlier versions did not
    return card | pool_card(teacher.pool) | student_card(teacher, imgsz)


def pool_card(pool: int) -> dict[str, int]:
    """Of feature maps; whole ones are not mentioned."""
    return {} if pool == WHOLE["pool"] else {"pool": pool}


def student_card(student: Model | Teacher, imgsz: int) -> dict[str, Any]:
    """The part that the student and the run ask for. student: a model, or a teacher in its layout."""
    return {
        "format": FORMAT,
        "names": [student.names[number] for number in sorted(student.names)],
        "strides": list(student.strides),
        "anchors": [[[round(v, 4) for v in pair] for pair in level] for level in student.anchors.tolist()],
        "student_size": imgsz,
        "preprocessing": "RGB, letterboxed, grey 114",
    }


def folder_of(place: str | None, card: Mapping[str, Any]) -> Path:
    """Where outputs with this card are kept. place: as a plan names it."""
    kind = hashlib.sha256(json.dumps(dict(card), sort_keys=True).encode()).hexdigest()[:KIND_LETTERS]
    return Path((place or CACHE).replace(KIND, kind))


def is_saved(folder: Path) -> bool:
    return (folder / CARD).is_file()


def begin_folder(folder: Path, card: Mapping[str, Any]) -> None:
    """A card, where there is none. Raises StoreError where the folder holds other outputs."""
    if not (folder / CARD).exists():
        write_whole(folder / CARD, (json.dumps(dict(card), indent=1) + "\n").encode())
    check(folder, card)


def by_its_teacher(folder: Path) -> str:
    """How outputs come into a folder that teaches alone, as the end of a sentence."""
    return (
        f" by a run whose plan names the teacher itself, with cache: true and folder: {folder}; or by the program that "
        "wrote it"
    )


def check(folder: Path, card: Mapping[str, Any]) -> None:
    """Raises StoreError where the folder has no card, or another one."""
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder}: no saved outputs of a teacher: {CARD}: {error}") from None
    if not isinstance(found, dict):
        raise StoreError(
            f"{folder / CARD}: does not say what made these outputs; give another folder, or remove this one"
        )
    found, needed = WHOLE | found, WHOLE | dict(card)
    differs = next((key for key in needed if found.get(key) != needed[key]), None)
    if differs:
        raise StoreError(
            f"{folder}: holds outputs with {differs} {_short(found.get(differs))}, this run needs "
            f"{_short(needed[differs])}; give another folder, or remove this one"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "…"
