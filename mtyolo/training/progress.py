"""What a person sees while training: a moving bar of the epoch, and one line for each that is done."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtyolo.training.records import Row


class Display:
    """Lines on the terminal; says nothing when not `shown`. epochs: of the whole run."""

    def __init__(self, shown: bool, epochs: int) -> None:
        self.epochs = epochs
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not shown)
        self.task = self.bar.add_task("", total=None)
        self.began = time.monotonic()
        self.done = 0

    def __enter__(self) -> Display:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def epoch_begins(self, description: str, batches: int, done: int) -> None:
        self.bar.reset(self.task, description=description, total=batches, completed=done)

    def batch_done(self) -> None:
        self.bar.advance(self.task)

    def epoch_ends(self, row: Row) -> None:
        """One line: epoch, stage, each task's loss, weight and metric, time left."""
        self.done += 1
        epoch = int(row["epoch"] or 0)
        left = (time.monotonic() - self.began) / self.done * (self.epochs - epoch)
        parts = [f"{epoch:>4}/{self.epochs}", str(row["stage"])]
        for name in row:
            if name.startswith("loss/") and "." not in name:
                parts.append(_task_words(name.removeprefix("loss/"), row))
        self.say(" · ".join([*parts, f"left {_clock(left)}"]))


def _task_words(task: str, row: Row) -> str:
    loss, weight, precision = (row.get(key) for key in (f"loss/{task}", f"weight/{task}", f"{task}/AP"))
    words = f"{task} {loss:.4f}"
    if isinstance(weight, float) and not math.isnan(weight) and weight != 1:
        words += f" x {weight:.2f}"
    if isinstance(precision, float) and not math.isnan(precision):
        words += f" AP {precision:.3f}"
    return words


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
