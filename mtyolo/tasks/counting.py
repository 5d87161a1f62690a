"""Counts that losses divide by, over all processes of a run."""

from __future__ import annotations

from torch import Tensor, distributed

SMALLEST = 1e-6
"""In place of a count of zero: nothing divided by none is nothing."""


def divisor(count: Tensor) -> Tensor:
    """What to divide a sum over `count` things by to get their mean; never zero.

    With several processes, the count's mean over processes: results summed over processes are then those of the whole
    batch in one, where a mean of each process's own mean would weigh an object less that has more company.
    To be called equally often in every process.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        count = count.detach().clone()
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=SMALLEST)
