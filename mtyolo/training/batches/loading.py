"""Batches of a stage: from where an epoch was left, and of each batch the share of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from mtyolo.data.loader import Loader
from mtyolo.errors import DataError
from mtyolo.structures import Batch


class Portion(Sampler[list[Any]]):
    """Batches of another sampler from number `skip` on; of each, every `processes`-th pick from `process` on.

    `skip` may change between passes. repeat: so many draws of each item, then the first again.
    """

    def __init__(
        self, batches: Sampler[list[Any]], process: int = 0, processes: int = 1, repeat: int | None = None
    ) -> None:
        self.batches = batches
        self.process = process
        self.processes = processes
        self.repeat = repeat
        self.skip = 0

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.skip)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        for picks in islice(self.batches, self.skip, None):
            # A last batch smaller than the number of processes: those without a pick repeat the last one.
            own = picks[self.process :: self.processes] or picks[-1:]
            yield own if self.repeat is None else [(epoch % self.repeat, index) for epoch, index in own]


class StageLoader:
    """Epochs of batches, each the same however often it is begun.

    views: passes over the data an epoch; each augments anew. repeat: so many times, then as at first.
    """

    def __init__(
        self,
        loader: DataLoader[Batch],
        seed: int,
        *,
        views: int = 1,
        repeat: int | None = None,
        process: int = 0,
        processes: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset: Any = loader.dataset
        self.views = views
        self.portion = Portion(loader.batch_sampler, process, processes, repeat)  # type: ignore[arg-type]
        self.loader = Loader(
            loader.dataset,
            batch_sampler=self.portion,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            persistent_workers=loader.num_workers > 0,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            pin_memory=pin_memory,
            # Its own generator: beginning an epoch must not move the random state that training draws from.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.views * self._pass_length()

    def _pass_length(self) -> int:
        return len(self.portion.batches)  # type: ignore[arg-type]

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number`, without the first `skip`."""
        passes, rest = divmod(skip, self._pass_length())
        for view in range(passes, self.views):
            self.dataset.set_epoch(number * self.views + view)
            self.portion.skip = rest if view == passes else 0
            yield from self.loader


KILLED = ("exited unexpectedly", "is killed by signal")
"""What torch says, having no error of its own for it; in the middle of a step, or of whatever else is done then."""


@contextmanager
def reading() -> Iterator[None]:
    """Around the use of batches: says what to do when a process that reads images was killed."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in KILLED):
            raise
        raise DataError(
            "a process that reads images was killed, most likely for want of memory: use fewer --workers or a "
            "smaller --batch, or go on with --resume"
        ) from None
