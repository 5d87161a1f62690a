"""How much teachers (soft) and labels (hard) weigh as a stage goes on; what is done where a teacher does not help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mtyolo.config.distill import DistillConfig

LINEAR_START, LINEAR_END = 0.9, 0.1
"""Soft weight at both ends of `linear` and `cosine`; the hard one is 1 minus it."""
WARMUP_END, MIDDLE_END = 0.2, 0.8
"""Where `phases` changes, as fractions of the stage."""


class Weights(NamedTuple):
    soft: float
    hard: float


def constant(progress: float) -> Weights:
    return Weights(1.0, 1.0)


def phases(progress: float) -> Weights:
    """Labels first, then mostly the teacher, then both alike."""
    if progress < WARMUP_END:
        return Weights(0.3, 0.7)
    return Weights(0.7, 0.3) if progress < MIDDLE_END else Weights(0.5, 0.5)


def linear(progress: float) -> Weights:
    """From the teacher to the labels."""
    soft = LINEAR_START + (LINEAR_END - LINEAR_START) * progress
    return Weights(soft, 1 - soft)


def cosine(progress: float) -> Weights:
    """From the teacher to the labels, slowly at both ends."""
    soft = LINEAR_END + (LINEAR_START - LINEAR_END) * (1 + math.cos(math.pi * progress)) / 2
    return Weights(soft, 1 - soft)


SCHEDULES: dict[str, Callable[[float], Weights]] = {
    "constant": constant,
    "phases": phases,
    "linear": linear,
    "cosine": cosine,
}


def weights_at(config: DistillConfig, epoch: int, epochs: int) -> Weights:
    """Of epoch `epoch` of `epochs`, counted from 0: a function of these alone, so nothing to save or to resume."""
    # The last epoch is the end of the schedule, a single one its start.
    progress = epoch / epochs if config.schedule == "phases" else epoch / max(1, epochs - 1)
    weights = SCHEDULES[config.schedule](progress)
    ramp = min(1.0, (epoch + 1) / config.ramp) if config.ramp else 1.0
    return Weights(weights.soft * config.soft * ramp, weights.hard * config.hard)


TOO_MUCH = 3.0
"""Times the teacher's own loss."""
LESS = 0.5
PATIENCE = 3
"""Epochs between two halvings."""


class ThreeTimesRule:
    """Halves the learning rate after an epoch whose distillation loss exceeds three times the teacher's own task loss
    on the same batches: the student is too far away to follow at this pace. Without labels there is no such loss, and
    nothing is halved."""

    def __init__(self) -> None:
        self.factor = 1.0
        self.distilled = self.teachers = 0.0
        self.since = PATIENCE

    def add(self, distilled: float, teachers: float) -> None:
        """One batch's losses."""
        self.distilled += distilled
        self.teachers += teachers

    def end_epoch(self) -> None:
        self.since += 1
        if self.distilled > TOO_MUCH * self.teachers > 0 and self.since > PATIENCE:
            self.factor *= LESS
            self.since = 0
        self.distilled = self.teachers = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class DynamicWeights:
    """Which terms still help: in turn, each is tried at half its weight for an epoch.

    Where the validation metric then rises by at least as much as in the epoch before, the half stays; else the weight
    comes back. A search along one weight at a time: two epochs a trial, no further passes over the data.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.factors = dict.fromkeys(terms, 1.0)
        self.on_trial: str | None = None
        self.next = 0
        self.last: float | None = None
        self.rise: float | None = None

    def judge(self, fitness: float) -> None:
        """The validation metric after an epoch."""
        rise = None if self.last is None else fitness - self.last
        if self.on_trial is not None:
            if rise is not None and self.rise is not None and rise < self.rise:
                self.factors[self.on_trial] /= LESS
            self.on_trial = None
        elif rise is not None:
            self.on_trial = list(self.factors)[self.next % len(self.factors)]
            self.next += 1
            self.factors[self.on_trial] *= LESS
        self.last, self.rise = fitness, rise

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self)) | {"factors": dict(self.factors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
