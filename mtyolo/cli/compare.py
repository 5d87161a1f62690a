"""`mtyolo compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtyolo.cli import options
from mtyolo.cli.output import say, show_table, spare, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from mtyolo.comparing.gains import Comparison, Spread

EXAMPLES = (
    "mtyolo compare runs/train runs/train2 --picture compare.png",
    "mtyolo compare runs/all-tasks --against runs/boxes --against runs/masks --metric detect/AP --metric segment/AP",
    "mtyolo compare runs/fixed-0 runs/fixed-1 runs/pcgrad-0 runs/pcgrad-1 --seeds --last",
)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; a folder that holds some stands for them all.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Runs that gains are over, one a time: for each metric, of these the one that learned the fewest "
            "tasks. Default: the first run."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Column of results.csv to compare, one a time. Default: every AP.")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Take the last epoch of each run, not its best.")] = False,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Runs whose names differ in the number at their end are one: their mean.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the metrics over the epochs to this file.")] = None,
    json: options.Json = None,
) -> None:
    from mtyolo.comparing.gains import compare as side_by_side
    from mtyolo.comparing.runs import RESULTS, read_runs

    spare((path / RESULTS for path in (*runs, *(against or ()))), json, picture)
    found = read_runs(runs, against or ())
    for damaged in found.left_out:
        say(f"warning: left out: {damaged}")
    comparison = side_by_side(found.runs, found.against, metrics=metric or (), last=last, seeds=seeds)
    for name in comparison.near_zero:
        say(
            f"warning: {name} of {comparison.against[name].name} is next to nothing, and Δm counts what is gained over "
            "it (but over 0); name columns that mean more, as --metric detect/AP --metric keypoint/OKS"
        )
    if json is not None:
        write_json(comparison.as_dict(), json)
    if str(json) != "-":
        show_table(_table(comparison))
    if picture is not None:
        from mtyolo.comparing.curves import draw_curves
        from mtyolo.drawing import save_image

        say(f"over the epochs: {save_image(draw_curves(comparison), picture)}")


def _table(comparison: Comparison) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", title="Side by side", caption=_caption(comparison))
    for name in ("epoch", *comparison.metrics, "Δm"):
        table.add_column(name, justify="right")
    best = {metric: comparison.best(metric) for metric in comparison.metrics}
    for line in comparison.lines:
        numbers = [int(epoch["epoch"]) for epoch in line.chosen]
        epochs = "-".join(map(str, dict.fromkeys((min(numbers), max(numbers)))))
        cells = [_shown(line.of(metric), bold=line is best[metric]) for metric in comparison.metrics]
        table.add_row(escape(line.name), epochs, *cells, _percent(comparison.gain(line)))
    return table


def _shown(found: Spread | None, *, bold: bool) -> str:
    if found is None:
        return "-"
    text = f"{found.mean:.3f}" + ("" if found.error is None else f" ({found.error:.3f})")
    return f"[bold]{text}[/bold]" if bold else text


def _percent(gain: Spread | None) -> str:
    if gain is None:
        return ""
    return f"{round(100 * gain.mean, 1) + 0.0:+.1f} %" + ("" if gain.error is None else f" ({100 * gain.error:.1f})")


def _caption(comparison: Comparison) -> str:
    over = {line.name: None for line in comparison.against.values()}
    several = any(len(line.runs) > 1 for line in comparison.lines)
    brackets = "; in brackets standard errors over seeds" if several else ""
    return f"Δm: mean relative gain over {', '.join(over)}{brackets}"
