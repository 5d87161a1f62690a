"""`mtyolo check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtyolo.cli import options
from mtyolo.cli.output import say, show_table, spare, write_json
from mtyolo.config.model import LARGEST_SIDE, USUAL_SIDE
from mtyolo.errors import ConfigError, MtyoloError

if TYPE_CHECKING:
    from mtyolo.data.records import Split
    from mtyolo.data.report import SplitReport

EXAMPLES = (
    "mtyolo check coco_mini.yaml --picture labels.jpg",
    "mtyolo check coco_mini.yaml --imgsz 320 --strict --json -",
)

MOST_CLASSES = 30
"""Shown one by one."""
TILES = 16
OBJECTS = {"detect": "objects", "segment": "… with a mask", "keypoint": "… with points"}
LAST_OF_ALL = "sizes"
"""Row after which the classes come."""


def check(
    data: Annotated[
        Path, typer.Argument(callback=options.data_there, help="A data file (.yaml), or a folder of pictures.")
    ],
    imgsz: Annotated[
        int, typer.Option(min=32, max=LARGEST_SIDE, help="Side of the network input, in pixels.")
    ] = USUAL_SIDE,
    picture: Annotated[
        Path | None, typer.Option(help="Draw some images with their labels, as the network sees them, to this file.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split the picture shows: train, val or test.")] = "train",
    strict: options.Strict = False,
    json: options.Json = None,
) -> None:
    from mtyolo.data.report import remarks, report_on

    splits, failed = _readable(data, strict)
    spare([data, *(record.path for one in splits for record in one.records)], json, picture)
    reports = [report_on(one, imgsz) for one in splits]
    said = [*remarks(reports, imgsz), *_copies(splits), *_shared(splits)]
    if failed is None and not any(one.name == "train" for one in splits):
        said.append("there is no train split, and nothing can be trained without one")
    for one in splits:
        if found_wrong := one.problems.summary():
            say(f"{one.name}:\n{found_wrong}")
    for remark in said:
        say(f"warning: {remark}")
    if failed is None and not said and not any(one.problems.counts for one in splits):
        say("nothing wrong was found")
    if json is not None:
        write_json(
            {
                "splits": [found.as_dict() for found in reports],
                "warnings": said,
                "failed": None if failed is None else str(failed),
            },
            json,
        )
    if str(json) != "-" and reports:
        _show(reports)
    if failed is not None:
        raise failed
    if picture is not None:
        _draw(splits, split, imgsz, picture)


def _readable(data: Path, strict: bool) -> tuple[list[Split], MtyoloError | None]:
    """Splits of a data file, and what was wrong with the first that can not be read at all."""
    from mtyolo.data.sources import SPLITS, read_data
    from mtyolo.data.split import load_split

    source, found, failed = read_data(data), [], None
    for name in [name for name in SPLITS if source.has(name)] or SPLITS[:1]:
        try:
            found.append(load_split(source, name, strict=strict))
        except MtyoloError as error:
            failed = failed or error
    return found, failed


def _copies(splits: Sequence[Split]) -> Iterator[str]:
    from mtyolo.data.report import copies

    for one in splits:
        if pairs := copies(one):
            many, (path, twin) = f"{len(pairs)} picture{'s' * (len(pairs) > 1)}", pairs[0]
            yield f"{many} of {one.name} there once more, first {path} as {twin}: what they show counts so often"


def _shared(splits: Sequence[Split]) -> Iterator[str]:
    from mtyolo.data.report import shared_pictures

    for one, other in combinations(splits, 2):
        if pairs := shared_pictures(one, other):
            many, (path, twin) = f"{len(pairs)} picture{'s' * (len(pairs) > 1)}", pairs[0]
            yield (
                f"{many} of {one.name} also in {other.name}, first {path} as {twin}: what is learned by heart would "
                "pass for knowledge there; take them out of one of the two"
            )


def _show(reports: Sequence[SplitReport]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", *(found.name for found in reports), title="What the data holds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cells in _rows(reports):
        table.add_row(escape(name), *cells, end_section=name == LAST_OF_ALL)
    show_table(table)


def _rows(reports: Sequence[SplitReport]) -> Iterator[tuple[str, list[str]]]:
    """Name and a cell a split: of the whole, then of each class."""
    yield "images", [f"{found.images:,}" for found in reports]
    yield "without an object", [f"{found.empty:,}" for found in reports]
    for task, name in OBJECTS.items():
        if any(task in found.labelled for found in reports):
            yield f"images labelled for {task}", [f"{found.labelled.get(task, 0):,}" for found in reports]
            yield name, [f"{found.objects.get(task, 0):,}" for found in reports]
    yield "crowd regions", [f"{found.crowd:,}" for found in reports]
    yield LAST_OF_ALL, [f"{_sides(found.smallest)} - {_sides(found.largest)}" for found in reports]
    counts = {name: [found.classes.get(name, 0) for found in reports] for found in reports for name in found.classes}
    most = sorted(counts, key=lambda name: -sum(counts[name]))
    for name in most[:MOST_CLASSES]:
        yield name, [f"{count:,}" for count in counts[name]]
    if rest := [counts[name] for name in most[MOST_CLASSES:]]:
        yield f"{len(rest)} further classes", [f"{sum(column):,}" for column in zip(*rest, strict=True)]


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _draw(splits: Sequence[Split], name: str, size: int, picture: Path) -> None:
    from mtyolo.data.loader import Dataset, make_loader
    from mtyolo.data.split import some_of
    from mtyolo.drawing import draw_batch, save_image

    chosen = next((one for one in splits if one.name == name), None)
    if chosen is None:
        raise ConfigError(f"--split {name}: the data has {', '.join(one.name for one in splits)}; draw one of these")
    few = some_of(chosen, TILES)
    loader = make_loader(Dataset(few, size, cache_bytes=0), len(few), shuffle=False, workers=0, seed=0)
    sheet = draw_batch(next(iter(loader)), chosen.names, chosen.skeleton)
    say(f"{len(few)} images of {name} with their labels: {save_image(sheet, picture)}")
