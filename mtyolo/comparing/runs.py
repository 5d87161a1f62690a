"""A run as its results.csv tells it."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mtyolo.errors import ConfigError

RESULTS = "results.csv"
ASSISTANTS = "assistants"
WORDS = ("stage",)
"""Columns that are no numbers."""
SEED = re.compile(r"[-_.]?(?:seed[-_.]?)?(\d+)$")

Epoch = Mapping[str, float]
"""What is known of one: a column without a number is left out."""


@dataclass(frozen=True)
class RunResults:
    """name: shortest path that tells it from the others. epochs: as far as they have ended; number 0 is from before
    training."""

    name: str
    epochs: Sequence[Epoch]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        """By fitness, of those in which it trained: the one whose weights are best.safetensors. The last where nothing
        was validated."""
        judged = [epoch for epoch in self.epochs if "fitness" in epoch]
        trained = [epoch for epoch in judged if epoch["epoch"] > 0]
        return max(trained or judged, key=lambda epoch: epoch["fitness"], default=self.last)

    @property
    def losses(self) -> set[str]:
        """What it learned: tasks, and what else was balanced beside them."""
        return {name for epoch in self.epochs for name in epoch if name.startswith("loss/") and "." not in name}

    @property
    def seed(self) -> int | None:
        """The number that its name ends with."""
        found = SEED.search(self.name)
        return int(found[1]) if found else None

    @property
    def kin(self) -> str:
        """Its name without that number; `*` where it is nothing else."""
        return SEED.sub("", self.name).rstrip("/") or "*"


class FoundRuns(NamedTuple):
    """left_out: why runs that a folder holds are not among them."""

    runs: list[RunResults]
    against: list[RunResults]
    left_out: list[str]


def read_runs(places: Sequence[Path], against: Sequence[Path] = ()) -> FoundRuns:
    """Those at `places`, which are folders of runs, or folders that hold some; and those at `against`, likewise.

    Raises ConfigError naming what is no run, or file and line of what is no result; in a folder of several, such a one
    is left out.
    """
    there = [[_folders(place) for place in some] for some in (places, against)]
    groups = [list(dict.fromkeys(folder for folders, _ in some for folder in folders)) for some in there]
    left_out = dict.fromkeys(reason for some in there for _, reasons in some for reason in reasons)
    names = _names([folder for group in groups for folder in group])
    found = {folder: RunResults(name, _begun(folder / RESULTS)) for folder, name in names.items()}
    runs, others = ([found[folder] for folder in group] for group in groups)
    return FoundRuns(runs, others, list(left_out))


def _folders(place: Path) -> tuple[list[Path], list[str]]:
    """Of the runs at a place, and why others there are left out."""
    folder = place.parent if place.name == RESULTS else place
    if folder.is_file():
        raise ConfigError(f"{place}: is a file; name the run's folder, which holds its {RESULTS}")
    if not folder.is_dir():
        raise ConfigError(
            f"{place}: no such folder (looked at {place.absolute()}); name a run's folder, or one of runs"
        )
    if (folder / RESULTS).is_file():
        return [folder.resolve()], []
    found = sorted(path for path in folder.glob(f"**/{RESULTS}") if path.parent.parent.name != ASSISTANTS)
    begun, damaged = [], []
    for path in found:
        try:
            begun += [path.parent.resolve()] if read_epochs(path) else []
        except ConfigError as error:
            damaged.append(str(error))
    if not begun:
        none = f"{folder}: no run has ended an epoch there: it holds no {RESULTS}, nor does a folder in it"
        raise ConfigError(damaged[0] if damaged else none)
    return begun, damaged


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    common = os.path.commonpath([folder.parent for folder in folders])
    return {folder: folder.relative_to(common).as_posix() for folder in folders}


def read_epochs(path: Path) -> list[Epoch]:
    """Rows of a results.csv. Raises ConfigError naming file and line of what is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: can not be read as a table: {error}") from None
    return [_numbers(row, f"{path}:{number}") for number, row in enumerate(rows, 2)]


def _begun(path: Path) -> list[Epoch]:
    epochs = read_epochs(path)
    if not epochs:
        raise ConfigError(f"{path}: has no epoch yet; wait until one has ended")
    return epochs


def _numbers(row: Mapping[str | None, str | list[str] | None], place: str) -> Epoch:
    found: dict[str, float] = {}
    for name, text in row.items():
        if name is None or text is None:
            raise ConfigError(
                f"{place}: has another number of values than the first line has names; remove this line, or leave the "
                "run out"
            )
        if text and name not in WORDS:
            try:
                value = float(str(text))
            except ValueError:
                raise ConfigError(f"{place}: {name} is {text!r}, no number; is this file a run's?") from None
            found |= {name: value} if math.isfinite(value) else {}
    if "epoch" not in found:
        raise ConfigError(f"{place}: says no epoch; is this file a run's?")
    return found
