"""Batches whose loss is not a number: named, skipped, counted; too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    """Keeps what a forward pass changes (BatchNorm statistics), so that a bad batch leaves no trace.

    records: of the training split, to name images. store: the folder that features come from, if any. `skipped` counts;
    `in_a_row` is reset by a good batch.
    """

    def __init__(self, model: nn.Module, records: Sequence[ImageRecord], store: Path | None = None) -> None:
        self.records = records
        self.store = store
        self.skipped = self.in_a_row = 0
        self.statistics = [
            buffer for module in model.modules() if module.training for buffer in module.buffers(recurse=False)
        ]
        self.kept = [buffer.clone() for buffer in self.statistics]

    @torch.no_grad()
    def remember(self) -> None:
        """To be called before each forward pass."""
        if self.statistics:
            torch._foreach_copy_(self.kept, self.statistics)

    @torch.no_grad()
    def skip(self, batch: Batch, values: dict[str, Tensor], *, elsewhere: bool = False) -> None:
        """Undo the batch's traces and name it. elsewhere: it is another process whose batch is bad, and names it.

        Raises MtyoloError after MOST_IN_A_ROW in a row, StoreError where stored features are to blame.
        """
        for kept, buffer in zip(self.kept, self.statistics, strict=True):
            buffer.copy_(kept)
        self.skipped += 1
        self.in_a_row += 1
        paths = [str(self.records[index].path) for index in batch.indices.tolist()]
        named = ", ".join(paths[:PATHS_NAMED]) + (f" and {len(paths) - PATHS_NAMED} more" * (len(paths) > PATHS_NAMED))
        bad = ", ".join(f"{name} is {float(value)}" for name, value in values.items() if not value.isfinite())
        stored = self._stored(batch)
        if not elsewhere:
            logger.warning("%s: skipped the batch of %s", stored or bad or "a gradient is not finite", named)
        if stored and self.store is not None and self.in_a_row >= MOST_IN_A_ROW:
            raise StoreError(f"{stored}, and {self.in_a_row} batches in a row were skipped; {repair_of(self.store)}")
        if self.in_a_row >= MOST_IN_A_ROW:
            raise MtyoloError(
                f"{bad or 'gradients are not finite'} for {self.in_a_row} batches in a row, the last of {named}: "
                "training has diverged; lower lr, set clip_norm, or use precision: fp32, and start from the last "
                "checkpoint that was good"
            )

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
