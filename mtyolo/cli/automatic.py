"""`mtyolo train --batch auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mtyolo.cli.output import say
from mtyolo.config.plan import PlanConfig
from mtyolo.config.training import TrainConfig


def refuse_what_is_not_measured(plan: PlanConfig) -> None:
    """Whose memory --batch auto knows nothing of. A cache asks its teacher, too, for pictures that are new to it."""
    from mtyolo.distill.cards import is_saved

    if plan.assistants:
        raise typer.BadParameter(
            "--batch auto measures the student, and the plan's assistants may be larger; say how many"
        )
    asked = next((teacher for teacher in plan.teachers if not is_saved(Path(teacher))), None)
    if asked is not None:
        raise typer.BadParameter(
            f"--batch auto measures the student alone, and the plan's teacher {asked} is asked beside it; say how "
            "many, or let a folder of saved outputs teach"
        )


def measured_batch(model: Any, settings: TrainConfig) -> int:
    from mtyolo.geometry import fitting_side
    from mtyolo.training.batches.batch_size import fitting_batch
    from mtyolo.training.processes import over_processes, own_device

    device = own_device(settings.device)
    batch = fitting_batch(model, fitting_side(settings.imgsz, model.largest_stride), device)
    if device.type == "cuda":
        batch = over_processes(batch)
    say(f"batch: {batch}")
    return batch
