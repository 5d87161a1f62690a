"""A run's folder: settings, rows of results, checkpoints, the best weights."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from mtyolo.checkpoint import save_weights
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.model import Model
from mtyolo.training.records.checkpoints import STATE, Position, read_state
from mtyolo.training.records.rows import Row, plot_results, write_csv
from mtyolo.training.stages import Stage

try:
    import fcntl
except ImportError:  # not everywhere
    fcntl = None  # type: ignore[assignment]

RUNS = Path("runs")
LOCK = ".lock"
UNFINISHED = re.compile(r"\.(.+\.)?\d+(\.\w+)*")
"""Names of files that are still being written."""
ASSISTANTS = "assistants"
"""Folder inside a run's: one for each assistant."""
AT_ITS_START = (STATE, "results.csv", "results.png", "train_batch.jpg")
"""What a run may leave before it has trained."""
PLOT_SECONDS = 20.0
"""A plot takes half a second, an epoch may take less: between plots, but for the one at the end."""


@dataclass
class Run:
    """What a training left. `results`: a row an epoch."""

    out: Path
    results: list[Row] = field(default_factory=list)
    best_fitness: float = -math.inf
    plotted_at: float = field(default_factory=time.monotonic)

    def __repr__(self) -> str:
        """A line: notebooks show what a cell ends with, and the rows are many."""
        epoch = self.results[-1]["epoch"] if self.results else 0
        fitness = f"best fitness {self.best_fitness:.3f}" if math.isfinite(self.best_fitness) else "never validated"
        return f"Run({str(self.out)!r}, epoch {epoch}, {fitness})"

    @property
    def best(self) -> Path:
        """Weights of the epoch with the best fitness; of the last where nothing was validated."""
        path = self.out / "best.safetensors"
        return path if path.exists() else self.last

    @property
    def last(self) -> Path:
        return self.out / "last.safetensors"

    def add(self, row: Row) -> None:
        """Keep a row, and write results.csv and, now and then, results.png anew."""
        self.results.append(row)
        write_csv(self.results, self.out / "results.csv")
        if time.monotonic() - self.plotted_at > PLOT_SECONDS:
            self.plot()

    def plot(self) -> None:
        plot_results(self.results, self.out / "results.png")
        self.plotted_at = time.monotonic()

    def keep_weights(self, model: Model, averaged: nn.Module, row: Row) -> None:
        """Write last.safetensors, and best.safetensors where this epoch is the best so far."""
        tensors = averaged.state_dict()
        save_weights(model, self.last, tensors=tensors)
        fitness = row.get("fitness")
        if isinstance(fitness, float) and fitness > self.best_fitness:
            self.best_fitness = fitness
            save_weights(model, self.out / "best.safetensors", tensors=tensors)

    def is_stale(self, stage: Stage, patience: int | None) -> bool:
        """Has the stage gone on for `patience` epochs without a better fitness?"""
        if patience is None:
            return False
        rows = [row for row in self.results if row["stage"] == stage.name and isinstance(row.get("fitness"), float)]
        best = max(rows, key=lambda row: float(row["fitness"] or 0), default=None)
        return best is not None and int(rows[-1]["epoch"] or 0) - int(best["epoch"] or 0) >= patience

    def state_dict(self) -> dict[str, Any]:
        return {
            "results": self.results,
            "best_fitness": self.best_fitness,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def remove_unfinished(folder: Path) -> None:
    """What a killed process was writing, under a name with its number."""
    for path in folder.glob(".*"):
        if path.is_file() and UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path, *, new: bool = False) -> Iterator[Path]:
    """Keeps other trainings out of a run's folder. The lock goes with the process, however that ends; those that it
    has started to read images do not inherit it. What a killed one left half-written goes, too.

    new: is it for a new run? Raises ConfigError where another process is at work there, or a new run would write over
    one that is there.
    """
    with (folder / LOCK).open("a") as lock:
        locked = _lock(lock, folder)
        if new:
            _make_room(folder, alone=locked)
        remove_unfinished(folder)
        try:
            yield folder
        finally:
            _leave_no_trace(folder)


def _lock(lock: TextIO, folder: Path) -> bool:
    """Whether there are locks. Raises ConfigError where another process has this one."""
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ
        raise ConfigError(f"{folder}: another process is training there; wait for it, or name another --out") from None
    except OSError:  # a file system without locks
        return False
    return fcntl is not None


def _make_room(folder: Path, *, alone: bool) -> None:
    """What a run left that ended before it, or one of its assistants, had trained at all, goes. alone: is it sure that
    none is still at its start here?"""
    refuse_taken(folder, alone=alone)
    for path in (state.with_name(name) for state in _states(folder) for name in AT_ITS_START):
        path.unlink(missing_ok=True)


def refuse_taken(folder: Path, *, alone: bool = True) -> None:
    """Raises ConfigError where a run can not begin, because one has trained there, or a file has this name."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        what = "the run's folder" if there == folder else there
        raise ConfigError(f"{folder}: {what} is a file; name another --out (in Python out=)")
    if any(not alone or _has_trained(path) for path in _states(folder)):
        raise ConfigError(
            f"{folder}: a run is already there; go on with --resume {folder}, or name another --out "
            "(in Python resume=, out=)"
        )


def _states(folder: Path) -> list[Path]:
    """Of a run, and of its assistants."""
    return [path for path in (folder / STATE, *folder.glob(f"{ASSISTANTS}/*/{STATE}")) if path.exists()]


def _has_trained(state: Path) -> bool:
    try:
        return Position(**read_state(state)["position"]) != Position()
    except CheckpointError as error:
        raise ConfigError(f"{error}; it is not written over: name another --out, or remove it") from None


def _leave_no_trace(folder: Path) -> None:
    """Of a run that failed before it left anything, in a folder that was named for it: the next takes its number."""
    if folder.parent == RUNS and [path.name for path in folder.iterdir()] == [LOCK]:
        with suppress(OSError):  # a file that is open can not go everywhere
            (folder / LOCK).unlink()
            folder.rmdir()


def run_folder(out: Path | str | None, resume: Path | str | None = None) -> Path:
    """The folder given, that of the run to resume, or the first of runs/train, runs/train2, … that is not there.

    Raises ConfigError where it can not be made."""
    if resume is not None:
        return Path(resume) if Path(resume).is_dir() else Path(resume).parent
    if out is None:
        numbers = (RUNS / f"train{number if number > 1 else ''}" for number in range(1, 10**6))
        out = next(path for path in numbers if not path.exists())
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if isinstance(error, FileExistsError) else f"can not be made: {error.strerror}"
        raise ConfigError(f"{folder}: the run's folder {reason}; name another --out (in Python out=)") from None
    return folder
