"""Batches whose loss and steps whose gradient is no number: named, skipped, counted; too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtyolo.data.records import ImageRecord
from mtyolo.errors import MtyoloError, StoreError
from mtyolo.features.finite import said_of_features
from mtyolo.features.manifest import repair_of
from mtyolo.structures import Batch

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
PATHS_NAMED = 4


class NonFiniteGuard:
    """Keeps what forward passes change (BatchNorm statistics), so that a bad batch, or a bad step of several batches,
    leaves no trace.

    records: of the training split, to name images. store: the folder that features come from, if any. `skipped` counts
    batches; `in_a_row` counts what was skipped at once, and is reset by a good step.
    """

    def __init__(self, model: nn.Module, records: Sequence[ImageRecord], store: Path | None = None) -> None:
        self.records = records
        self.store = store
        self.skipped = self.in_a_row = 0
        self.batches = self.lost = 0
        """Of the stage so far: all, and those that were skipped."""
        self.last = ("losses are not finite", "them", "")
        """What was wrong when batches were last skipped, the images, and what is wrong with their stored features."""
        self.statistics = [
            buffer for module in model.modules() if module.training for buffer in module.buffers(recurse=False)
        ]
        self.before_step, self.before_batch = ([buffer.clone() for buffer in self.statistics] for _ in range(2))
        self.kept = self.before_step
        self.images: list[Tensor] = []
        """Numbers of the step's images so far, batch by batch; without those of skipped batches."""

    @torch.no_grad()
    def remember(self, batch: Batch, *, begins_step: bool = True) -> None:
        """To be called before each forward pass. begins_step: has no batch waited for the optimiser's step?"""
        self.batches += 1
        self.images = [*([] if begins_step else self.images), batch.indices]
        self.kept = self.before_step if begins_step else self.before_batch
        if self.statistics:
            torch._foreach_copy_(self.kept, self.statistics)

    def skip(self, batch: Batch, values: Mapping[str, Tensor], *, elsewhere: bool = False) -> None:
        """Undo the traces of the last batch and name it. elsewhere: it is another process whose batch is bad, and
        names it.

        Raises MtyoloError after MOST_IN_A_ROW in a row, StoreError where stored features are to blame.
        """
        self._undo(self.kept, batches=1)
        named, stored = self._named(self.images.pop()), self._stored(batch)
        bad = ", ".join(f"{name} is {float(value.detach())}" for name, value in values.items() if not value.isfinite())
        if not elsewhere:
            logger.warning("%s: skipped the batch of %s", stored or bad or "a loss is not finite", named)
        self._end(bad or "losses are not finite", named, stored)

    def skip_step(self, batch: Batch) -> None:
        """The same for all batches of a step, whose gradients can not be told apart. batch: the last of them."""
        self._undo(self.before_step, batches=len(self.images))
        named, stored = self._named(torch.cat(self.images)), self._stored(batch)
        several = f"{len(self.images)} batches" if len(self.images) > 1 else "batch"
        logger.warning("%s: skipped the %s of %s", stored or "a gradient is not finite", several, named)
        self._end("gradients are not finite", named, stored)

    @torch.no_grad()
    def _undo(self, kept: Sequence[Tensor], batches: int) -> None:
        for values, buffer in zip(kept, self.statistics, strict=True):
            buffer.copy_(values)
        self.skipped += batches
        self.lost += batches
        self.in_a_row += 1

    def end_stage(self) -> None:
        """Raises as `skip` does after a stage that lost every batch: short ones may have few in a row."""
        if self.batches and self.lost == self.batches:
            raise self._failure(f"all {self.lost} batches of a stage" if self.lost > 1 else "the only batch of a stage")

    def _end(self, what: str, named: str, stored: str) -> None:
        self.last = (what, named, stored)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise self._failure(f"{self.in_a_row} batches in a row")

    def _failure(self, often: str) -> MtyoloError:
        what, named, stored = self.last
        if stored and self.store is not None:
            return StoreError(f"{stored}, and {often} were skipped; {repair_of(self.store)}")
        return MtyoloError(
            f"{what} for {often}, the last of {named}: training has diverged; lower lr, set clip_norm, or use "
            "precision: fp32, and start from the last checkpoint that was good"
        )

    def _named(self, images: Tensor) -> str:
        paths = [str(self.records[index].path) for index in images.tolist()]
        return ", ".join(paths[:PATHS_NAMED]) + (f" and {len(paths) - PATHS_NAMED} more" * (len(paths) > PATHS_NAMED))

    def _stored(self, batch: Batch) -> str:
        """What is wrong with a batch's features, as the beginning of a sentence; nothing where they are finite."""
        paths = [self.records[index].path for index in batch.indices.tolist()]
        return said_of_features(self.store, batch.pyramid or {}, paths)

    def accept(self) -> None:
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "batches": self.batches, "lost": self.lost}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        # Earlier versions did not count these: one good batch is taken to have been.
        self.batches, self.lost = state.get("batches", 1), state.get("lost", 0)
