"""How the losses of several tasks become one step: a word of the plan -> a balancer."""

from __future__ import annotations

from collections.abc import Sequence

from mtyolo.balance.balancer import Balancer
from mtyolo.balance.scalar import ScalarBalancer


def make_balancer(word: str, tasks: Sequence[str], weights: dict[str, float] | None = None) -> Balancer:
    return ScalarBalancer(tuple(tasks), weights)


__all__ = ["Balancer", "make_balancer"]
