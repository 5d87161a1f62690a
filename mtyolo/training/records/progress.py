"""What a person sees while training: a moving bar of the epoch, and one line for each that is done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtyolo.training.records.rows import Row


class Display:
    """Lines on the terminal; says nothing when not `shown`. lengths: of the run's epochs, in images or any unit."""

    def __init__(self, shown: bool, lengths: Sequence[float] = ()) -> None:
        self.lengths = lengths
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not shown)
        self.task = self.bar.add_task("", total=None)
        self.began = time.monotonic()
        self.done = 0.0
        self.share = 1.0
        """Of the epoch that goes on, what this process does: less where it was resumed inside."""

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
        self.share = 1 - min(done / batches, 1)

    def batch_done(self) -> None:
        self.bar.advance(self.task)

    def epoch_ends(self, row: Row) -> None:
        """One line: epoch, stage, each task's loss, weight and metric, time left."""
        epoch = int(row["epoch"] or 0)
        parts = [f"{epoch:>4}/{len(self.lengths)}", str(row["stage"])]
        parts += [words for task in _shown(row) if (words := _task_words(task, row))]
        self.say(" · ".join([*parts, f"left {clock(self._left(epoch))}"]))

    def _left(self, epoch: int) -> float:
        """Seconds, as fast as this process has been so far: stages differ in their epochs' length."""
        self.done += self.share * self.lengths[epoch - 1]
        spent, ahead = time.monotonic() - self.began, sum(self.lengths[epoch:])
        return spent / self.done * ahead if self.done else 0.0


def _shown(row: Row) -> list[str]:
    """What has a loss, then what else was judged."""
    trained = [name.removeprefix("loss/") for name in row if name.startswith("loss/") and "." not in name]
    judged = [name.removesuffix("/AP") for name in row if name.endswith("/AP")]
    return list(dict.fromkeys(trained + judged))


def _task_words(task: str, row: Row) -> str:
    """Nothing where no number is known."""
    keys = (f"loss/{task}", f"val/{task}", f"weight/{task}", f"{task}/AP", f"{task}/OKS")
    loss, held_out, weight, precision, similarity = (
        value if isinstance(value, float) and not math.isnan(value) else None for value in map(row.get, keys)
    )
    words = "" if loss is None else f" {loss:.4f}"
    words += "" if held_out is None else f" val {held_out:.4f}"
    words += "" if weight in (None, 1) else f" x {weight:.2f}"
    words += "" if precision is None else f" AP {precision:.3f}"
    words += "" if similarity is None else f" OKS {similarity:.3f}"
    return f"{task}{words}" if words else ""


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
