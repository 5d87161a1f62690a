"""How the losses of several tasks become one step: a word of the plan -> a balancer.

Sources and definitions: each class's docstring in torchjd (https://torchjd.org), and `GradNorm` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


class Method(NamedTuple):
    """Something of torchjd's."""

    make: Callable[..., Any]  # a scalarizer, from the number of tasks; or an aggregator
    averages: bool = False  # its weights add up to 1; they are multiplied by the tasks, so that lr keeps its meaning


SCALARIZERS: dict[str, Method] = {
    "fixed": Method(lambda count: scalarization.Sum()),
    "uncertainty": Method(scalarization.UW),
    "dwa": Method(lambda count: scalarization.DWA(temperature=2.0)),
    "famo": Method(scalarization.FAMO, averages=True),
    "imtl-l": Method(scalarization.IMTLL),
    "random": Method(lambda count: scalarization.Random(), averages=True),
    "geometric-mean": Method(lambda count: scalarization.GeometricMean()),
}
"""Weights of losses, by their values."""

AGGREGATORS: dict[str, Method] = {
    "pcgrad": Method(aggregation.PCGrad),
    "gradvac": Method(aggregation.GradVac),
    "graddrop": Method(aggregation.GradDrop),
    "config": Method(aggregation.ConFIG),
    "fairgrad": Method(lambda: aggregation.FairGrad(FAIRNESS)),
    "upgrad": Method(aggregation.UPGrad, averages=True),
    "dualproj": Method(aggregation.DualProj, averages=True),
    "mgda": Method(aggregation.MGDA, averages=True),
    "imtl-g": Method(aggregation.IMTLG, averages=True),
    "aligned-mtl": Method(aggregation.AlignedMTL, averages=True),
    "cagrad": Method(lambda: aggregation.CAGrad(CAUTION), averages=True),
}
"""One gradient on the shared features out of the tasks'. Not NashMTL: it can not resume."""


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
            method = SCALARIZERS[word]
            return ScalarBalancer(method.make(count), tasks, weights, averages=method.averages)
        method = AGGREGATORS[word]
        return GradientBalancer(method.make(), weights, averages=method.averages)
    except ImportError as error:
        raise ConfigError(f"balance: {word}: pip install 'mtyolo[balance]'; {error}") from None


__all__ = ["AGGREGATORS", "SCALARIZERS", "Balancer", "make_balancer"]
