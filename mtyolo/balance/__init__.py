"""How the losses of several tasks become one step: a word of the plan -> a balancer.

Sources and definitions: each class's docstring in torchjd (https://torchjd.org), and `GradNorm` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torchjd import aggregation, scalarization

from mtyolo.balance.balancer import Balancer
from mtyolo.balance.gradient import GradientBalancer
from mtyolo.balance.gradnorm import GradNorm
from mtyolo.balance.scalar import ScalarBalancer
from mtyolo.errors import ConfigError

FAIRNESS = 1.0
"""FairGrad's alpha: proportional fairness."""
CAUTION = 0.4
"""CAGrad's c: the paper's value for most of its tables."""

SCALARIZERS: dict[str, tuple[Callable[[int], scalarization.Scalarizer], bool]] = {
    "fixed": (lambda count: scalarization.Sum(), False),
    "uncertainty": (scalarization.UW, False),
    "dwa": (lambda count: scalarization.DWA(temperature=2.0), False),
    "famo": (scalarization.FAMO, True),
    "imtl-l": (scalarization.IMTLL, False),
    "random": (lambda count: scalarization.Random(), True),
    "geometric-mean": (lambda count: scalarization.GeometricMean(), False),
}
"""Word -> from the number of tasks to a scalarizer; do its weights add up to one?"""

AGGREGATORS: dict[str, tuple[Callable[[], aggregation.Aggregator], bool]] = {
    "pcgrad": (aggregation.PCGrad, False),
    "gradvac": (aggregation.GradVac, False),
    "graddrop": (aggregation.GradDrop, False),
    "config": (aggregation.ConFIG, False),
    "fairgrad": (lambda: aggregation.FairGrad(FAIRNESS), False),
    "upgrad": (aggregation.UPGrad, True),
    "dualproj": (aggregation.DualProj, True),
    "mgda": (aggregation.MGDA, True),
    "imtl-g": (aggregation.IMTLG, True),
    "aligned-mtl": (aggregation.AlignedMTL, True),
    "cagrad": (lambda: aggregation.CAGrad(CAUTION), True),
}
"""Word -> an aggregator; does it average (so that K times it compares to a sum)? Not NashMTL: it can not resume."""


def make_balancer(word: str, tasks: Sequence[str], weights: Mapping[str, float] | None = None) -> Balancer:
    """The balancer that a plan names. weights: task -> factor of its loss before balancing.

    A single task has nothing to balance, whatever the word. Raises ConfigError for an optional library that is missing.
    """
    weights, count = weights or {}, len(tasks)
    if count < 2:
        return ScalarBalancer(scalarization.Sum(), tasks, weights)
    if word == "gradnorm":
        return GradNorm(tasks, weights)
    try:
        if word in SCALARIZERS:
            make_scalarizer, sums_to_one = SCALARIZERS[word]
            return ScalarBalancer(make_scalarizer(count), tasks, weights, averages=sums_to_one)
        make_aggregator, averages = AGGREGATORS[word]
        return GradientBalancer(make_aggregator(), weights, averages=averages)
    except ImportError as error:
        raise ConfigError(f"balance: {word}: pip install 'mtyolo[balance]'; {error}") from None


__all__ = ["AGGREGATORS", "SCALARIZERS", "Balancer", "make_balancer"]
