"""What `mtyolo train --dry-run` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtyolo.cli.output import say, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from mtyolo.model import Model
    from mtyolo.training.rehearsal import Estimate

CAPTION = (
    "a step: with the reading of its batch; between epochs: validation and saving, with the model as it is; one "
    "that finds more takes longer"
)


def say_rehearsal(model: Model, data: Path, **options: Any) -> None:
    from mtyolo.evaluation.validate import validate
    from mtyolo.training.processes import is_first
    from mtyolo.training.records.judging import Judge
    from mtyolo.training.records.run import refuse_taken
    from mtyolo.training.rehearsal import rehearse

    if options.get("out") is not None:
        refuse_taken(options["out"])
    found = rehearse(model, data, judge=Judge(validate), **options)
    if not is_first():
        return
    show_table(_table(found))
    if any(stage.step is None for stage in found.stages):
        say("stages without a time learn from what earlier ones make, and were not tried")
    if found.memory is not None:
        say(f"memory: {found.memory / 2**30:.1f} GiB at most")


def _table(found: Estimate) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from mtyolo.training.records.progress import clock

    table = Table("stage", title="What training would take", show_footer=True, caption=CAPTION)
    table.columns[0].footer = "all"
    for name in ("epochs", "steps", "parameters", "a step", "between", "time"):
        table.add_column(name, justify="right")
    table.columns[-1].footer = clock(found.seconds)
    for stage in found.stages:
        tried = stage.step is not None
        table.add_row(
            escape(stage.name),
            str(stage.epochs),
            f"{stage.epochs * stage.batches:,}" if tried else "-",
            f"{stage.parameters:,}",
            f"{1000 * stage.step:.0f} ms" if stage.step is not None else "-",
            clock(stage.after_epochs) if tried else "-",
            clock(stage.seconds) if tried else "-",
        )
    return table
