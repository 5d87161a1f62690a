"""Times that can be compared: everyone in every round, so that a machine that is busy is so for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mtyolo.timing.entrants import Entrant

Progress = Callable[[int, int], None]
"""Called with (done, of all)."""


@dataclass(slots=True)
class Timing:
    """Seconds of a batch in each round; what is told are milliseconds an image, medians over rounds."""

    entrant: Entrant
    images: int
    looking: list[float] = field(default_factory=list)
    finding: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Seconds of each round, of both."""
        return [look + find for look, find in zip(self.looking, self.finding, strict=True)]

    def an_image(self, seconds: float) -> float:
        return 1000 * seconds / self.images

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Milliseconds an image, of both: a quarter of the rounds took less, half, three quarters."""
        low, middle, high = statistics.quantiles(self.whole, n=4, method="inclusive")
        return self.an_image(low), self.an_image(middle), self.an_image(high)

    def over(self, other: Timing) -> float:
        """How many times the other's time, round by round."""
        return statistics.median(own / base for own, base in zip(self.whole, other.whole, strict=True))

    def as_dict(self, base: Timing) -> dict[str, Any]:
        low, middle, high = self.quartiles
        return {
            "model": self.entrant.name,
            "takes": self.entrant.takes,
            "parameters": self.entrant.parameters,
            "network_ms": self.an_image(statistics.median(self.looking)),
            "detections_ms": self.an_image(statistics.median(self.finding)),
            "ms": middle,
            "ms_quartiles": [low, high],
            "images_per_second": 1000 / middle,
            "over_first": self.over(base),
        }


@torch.no_grad()
def by_turns(
    entrants: Sequence[Entrant], images: int, device: torch.device, rounds: int, progress: Progress | None = None
) -> list[Timing]:
    """A round before the first does not count: there memory is taken, and kernels are chosen. rounds: at least two."""
    timings = [Timing(entrant, images) for entrant in entrants]
    for number in range(rounds + 1):
        for place, timing in enumerate(timings):
            looking, finding = _turn(timing.entrant, device)
            if number:
                timing.looking.append(looking)
                timing.finding.append(finding)
            if progress is not None:
                progress(number * len(timings) + place + 1, (rounds + 1) * len(timings))
    return timings


def _turn(entrant: Entrant, device: torch.device) -> tuple[float, float]:
    """Seconds until outputs are there, and from then on until detections are."""
    started = time.perf_counter()
    outputs = entrant.look()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    looked = time.perf_counter()
    entrant.find(outputs)
    return looked - started, time.perf_counter() - looked
