"""Batches whose loss and steps whose gradient is no number: named, skipped, counted; too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtyolo.data.records import ImageRecord
from mtyolo.errors import MtyoloError, StoreError
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
        self.in_a_row += 1

    def _end(self, what: str, named: str, stored: str) -> None:
        if self.in_a_row < MOST_IN_A_ROW:
            return
        if stored and self.store is not None:
            raise StoreError(f"{stored}, and {self.in_a_row} batches in a row were skipped; {repair_of(self.store)}")
        raise MtyoloError(
            f"{what} for {self.in_a_row} batches in a row, the last of {named}: training has diverged; lower lr, set "
            "clip_norm, or use precision: fp32, and start from the last checkpoint that was good"
        )

    def _named(self, images: Tensor) -> str:
        paths = [str(self.records[index].path) for index in images.tolist()]
        return ", ".join(paths[:PATHS_NAMED]) + (f" and {len(paths) - PATHS_NAMED} more" * (len(paths) > PATHS_NAMED))

    def _stored(self, batch: Batch) -> str:
        """What is wrong with a batch's features, as the beginning of a sentence; nothing where they are finite."""
        finite = torch.ones(len(batch.indices), dtype=torch.bool)
        for level in (batch.pyramid or {}).values():
            finite &= level.flatten(1).isfinite().all(1).cpu()
        wrong = batch.indices.cpu()[~finite].tolist()
        if not wrong:
            return ""
        first = self.records[wrong[0]].path
        return f"{self.store}: the features of {len(wrong)} of {len(finite)} images are not finite, first of {first}"

    def accept(self) -> None:
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
