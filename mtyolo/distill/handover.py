"""What projectors and generators have learned, from a stage to the next."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from mtyolo.distill.objective import Distiller

Learned = dict[str, dict[str, Tensor]]
"""Teacher, term and layers in words -> what was learned there, by name."""


def learned_by(distiller: Distiller | None, run: Path) -> Learned:
    """At the end of a stage. run: the run's folder, which may be moved before the next: its assistants go along."""
    found = {} if distiller is None else {place: loss.state_dict() for place, loss in _places(distiller, run)}
    return {place: tensors for place, tensors in found.items() if tensors}


def hand_over(learned: Learned, distiller: Distiller | None, run: Path) -> None:
    """To a stage that begins, where it has the same term of the same teacher at the same layers in the same shapes;
    what is taken is no longer in `learned`, as the stage will end with its own. run: as above."""
    for place, loss in [] if distiller is None else _places(distiller, run):
        own, given = loss.state_dict(), learned.get(place, {})
        if own and {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in given.items()}:
            loss.load_state_dict(learned.pop(place))


def _places(distiller: Distiller, run: Path) -> Iterator[tuple[str, nn.Module]]:
    """With a number behind them, where a plan has two alike."""
    met: Counter[str] = Counter()
    for course in distiller.courses:
        weights = course.config.weights.removeprefix(f"{run.absolute()}{os.sep}")
        for term in course.features:
            for pair, loss in zip(term.pairs, term.losses, strict=True):
                place = f"{weights} {term.name} {pair.student}:{pair.teacher}"
                met[place] += 1
                yield f"{place} {met[place]}", loss


__all__ = ["Learned", "hand_over", "learned_by"]
