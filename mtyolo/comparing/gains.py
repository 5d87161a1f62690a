"""How runs do against others: means over seeds, and the relative gain over all that was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mtyolo.comparing.runs import Epoch, RunResults
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError

USUAL = "/AP"
"""How metrics end that are compared where nobody names any."""
LOWER_IS_BETTER = ("loss/", "val/")
NEXT_TO_NOTHING = 0.01
"""One AP of a hundred: a tenth of it more or less is luck."""

Values = Mapping[str, float]  # by metric


class Spread(NamedTuple):
    """Over seeds. error: of the mean, where there are several."""

    mean: float
    error: float | None


@dataclass(frozen=True)
class Line:
    """A run, or runs that differ in their seed alone."""

    name: str
    runs: Sequence[RunResults]
    chosen: Sequence[Epoch]
    """Of each run, the one that counts."""

    def of(self, metric: str) -> Spread | None:
        values = [epoch[metric] for epoch in self.chosen if metric in epoch]
        return spread(values) if values else None

    @property
    def tasks(self) -> int:
        return max(len(run.losses) for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """metrics: what is compared. against: for each of them, the line that gains are over."""

    metrics: Sequence[str]
    lines: Sequence[Line]
    against: Mapping[str, Line]

    def gain(self, line: Line) -> Spread | None:
        """Of a line that gains are not over; None also where nothing can be compared."""
        if line in self.against.values():
            return None
        gains = [self._gain(run, epoch) for run, epoch in zip(line.runs, line.chosen, strict=True)]
        known = [gain for gain in gains if gain is not None]
        return spread(known) if known else None

    def _gain(self, run: RunResults, epoch: Epoch) -> float | None:
        base = {metric: _paired(line, metric, run.seed) for metric, line in self.against.items()}
        return delta_m(epoch, {metric: value for metric, value in base.items() if value is not None})

    def best(self, metric: str) -> Line | None:
        found = {line.name: found.mean for line in self.lines if (found := line.of(metric)) is not None}
        choose = min if is_error(metric) else max
        name = choose(found, key=lambda name: found[name], default=None)
        return next((line for line in self.lines if line.name == name), None)

    @property
    def near_zero(self) -> list[str]:
        """Metrics of which gains are over next to nothing."""
        found = {metric: line.of(metric) for metric, line in self.against.items()}
        return [metric for metric, value in found.items() if value is not None and abs(value.mean) < NEXT_TO_NOTHING]

    def as_dict(self) -> dict[str, Any]:
        """Ready for json."""
        return {
            "against": {metric: line.name for metric, line in self.against.items()},
            "runs": [
                {
                    "name": line.name,
                    "runs": [run.name for run in line.runs],
                    "epochs": [int(epoch["epoch"]) for epoch in line.chosen],
                    **{metric: _as_dict(line.of(metric)) for metric in self.metrics},
                    "delta_m": _as_dict(self.gain(line)),
                }
                for line in self.lines
            ],
        }


def compare(
    runs: Sequence[RunResults],
    against: Sequence[RunResults] = (),
    *,
    metrics: Sequence[str] = (),
    last: bool = False,
    seeds: bool = False,
) -> Comparison:
    """against: what gains are over: for each metric the one of these that learned fewest tasks; by default the first
    run that has any of the metrics. metrics: columns of results.csv, by default every AP. last: of each run the last
    epoch counts, not the best. seeds: runs whose names differ in the number at their end are one line.

    Raises ConfigError for metrics that no run has.
    """
    every = [*against, *(run for run in runs if run not in against)]
    lines = _lines(every, last=last, seeds=seeds)
    chosen = _metrics(every, metrics)
    usual = next((line for line in lines if any(line.of(metric) for metric in chosen)), lines[0])
    names = {run.name for run in against or usual.runs}
    bases = sorted((line for line in lines if any(run.name in names for run in line.runs)), key=lambda line: line.tasks)
    found = {metric: next((line for line in bases if line.of(metric) is not None), None) for metric in chosen}
    return Comparison(chosen, lines, {metric: line for metric, line in found.items() if line is not None})


def delta_m(found: Values, base: Values) -> float | None:
    """Mean over the metrics that both have of the relative gain, in shares; errors count the other way round.

    Maninis et al. 2019, arXiv:1904.08918. None where there is nothing to compare; a base of zero is left out.
    """
    gains = [
        (base[metric] - found[metric] if is_error(metric) else found[metric] - base[metric]) / base[metric]
        for metric in base
        if metric in found and base[metric]
    ]
    return statistics.fmean(gains) if gains else None


def is_error(metric: str) -> bool:
    return metric.startswith(LOWER_IS_BETTER)


def spread(values: Sequence[float]) -> Spread:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Spread(statistics.fmean(values), error)


def _lines(runs: Sequence[RunResults], *, last: bool, seeds: bool) -> list[Line]:
    groups: dict[str, list[RunResults]] = {}
    for run in runs:
        groups.setdefault(run.kin if seeds else run.name, []).append(run)
    return [Line(name, own, [run.last if last else run.best for run in own]) for name, own in groups.items()]


def _metrics(runs: Sequence[RunResults], wanted: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(name for run in runs for epoch in run.epochs for name in epoch if name != "epoch"))
    unknown = next((metric for metric in wanted if metric not in known), None)
    if unknown is not None:
        raise ConfigError(f"no run has {unknown!r} in its results.csv; {nearest(unknown, known)}")
    usual = [name for name in known if name.endswith(USUAL)] or [name for name in known if name.startswith("val/")]
    if not wanted and not usual:
        raise ConfigError("none of these runs was validated; name what to compare, as --metric loss/detect")
    return list(dict.fromkeys(wanted)) or usual


def _paired(line: Line, metric: str, seed: int | None) -> float | None:
    """Of the run with the same seed where there is one; else of all."""
    pairs = zip(line.runs, line.chosen, strict=True)
    same = [epoch[metric] for run, epoch in pairs if run.seed == seed and metric in epoch]
    if len(same) == 1:
        return same[0]
    found = line.of(metric)
    return None if found is None else found.mean


def _as_dict(found: Spread | None) -> dict[str, float | None] | None:
    return None if found is None else found._asdict()
