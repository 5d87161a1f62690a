"""What a validation found: COCO average precision of each task, and where the time went."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

FITNESS_WEIGHTS = {"detect": 1.0, "segment": 1.0, "keypoint": 1.0}
"""Our choice: the tasks count alike when the best checkpoint is picked."""
MOST_CLASSES = 20
"""Shown one by one."""


@dataclass(slots=True)
class TaskMetrics:
    """Average precision of one task by the COCO definition, over the images that are labelled for it.

    NaN where there was nothing to find: an average over no class is not zero.
    """

    ap: float  # mean over IoU (keypoints: OKS) 0.50 to 0.95 in steps of 0.05, and over the classes present
    ap50: float
    ap75: float
    images: int
    objects: int  # without crowd regions; masks and keypoints: objects that carry them
    per_class: dict[str, float] = field(default_factory=dict)  # name -> AP, classes that are present
    similarity: float = math.nan  # keypoints: mean over objects of the best OKS found; moves long before AP does


@dataclass(slots=True)
class Metrics:
    """Result of `validate`."""

    tasks: dict[str, TaskMetrics]
    seconds: dict[str, float] = field(default_factory=dict)  # an image: preprocess, forward, postprocess

    def __repr__(self) -> str:
        """A line, as notebooks show; `rich.print` shows the tables."""
        return f"Metrics({', '.join(f'{task} AP {_shown(found.ap)}' for task, found in self.tasks.items())})"

    @property
    def fitness(self) -> float:
        """Mean AP over the tasks by FITNESS_WEIGHTS, in 0..1; NaN if no task had an object to find."""
        judged = {task: found.ap for task, found in self.tasks.items() if not math.isnan(found.ap)}
        total = sum(FITNESS_WEIGHTS[task] for task in judged)
        return sum(FITNESS_WEIGHTS[task] * ap for task, ap in judged.items()) / total if total else math.nan

    def as_dict(self) -> dict[str, float | int | None]:
        """Flat and ready for json: "detect/AP", "segment/AP50", "seconds/forward", … None in place of NaN."""
        values: dict[str, float | int] = {}
        for task, found in self.tasks.items():
            values |= {f"{task}/AP": found.ap, f"{task}/AP50": found.ap50, f"{task}/AP75": found.ap75}
            values |= {f"{task}/images": found.images, f"{task}/objects": found.objects}
            values |= {f"{task}/OKS": found.similarity} if task == "keypoint" else {}
        values["fitness"] = self.fitness
        values |= {f"seconds/{step}": seconds for step, seconds in self.seconds.items()}
        return {key: None if math.isnan(value) else value for key, value in values.items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """task -> class name -> AP."""
        return {task: dict(found.per_class) for task, found in self.tasks.items()}

    def table(self) -> Table:
        """For rich.print: a row a task, the time below."""
        from rich.table import Table

        spent = " · ".join(f"{step} {1000 * seconds:.1f} ms" for step, seconds in self.seconds.items())
        table = Table(title="Average precision (COCO)", caption=f"an image: {spent}" if spent else None)
        for column in (
            "task",
            "images",
            "objects",
            "AP",
            "AP50",
            "AP75",
            *(["OKS"] if "keypoint" in self.tasks else []),
        ):
            table.add_column(column, justify="left" if column == "task" else "right")
        for task, found in self.tasks.items():
            precision = (_shown(found.ap), _shown(found.ap50), _shown(found.ap75))
            similarity = (_shown(found.similarity),) if task == "keypoint" else ()
            table.add_row(task, str(found.images), str(found.objects), *precision, *similarity)
        return table

    def class_table(self) -> Table | None:
        """For rich.print: AP of each class, a column a task. None for more than MOST_CLASSES, which nobody reads."""
        from rich.markup import escape
        from rich.table import Table

        classes = list(dict.fromkeys(name for found in self.tasks.values() for name in found.per_class))
        if not 0 < len(classes) <= MOST_CLASSES:
            return None
        table = Table("class", title="AP of each class")
        for task in self.tasks:
            table.add_column(task, justify="right")
        for name in classes:
            table.add_row(escape(name), *(_shown(found.per_class.get(name, math.nan)) for found in self.tasks.values()))
        return table


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
