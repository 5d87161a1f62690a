"""`mtyolo features info` and `mtyolo features verify`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtyolo.cli import options
from mtyolo.cli.output import progress_bar, say, write_json

if TYPE_CHECKING:
    from mtyolo.data.records import Split
    from mtyolo.features.verify import StoreInfo

EXAMPLES = (
    "mtyolo features info features",
    "mtyolo features verify features --data coco_mini.yaml",
)
DAMAGED = 2
"""Exit code where something is wrong with a store."""


class Action(str, Enum):
    info = "info"
    verify = "verify"


def features(
    action: Annotated[Action, typer.Argument(help="info: what is inside. verify: every checksum.")],
    directory: Annotated[Path, typer.Argument(help="The store's folder.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="With verify: compare with these images, byte by byte.")
    ] = None,
    json: options.Json = None,
) -> None:
    from mtyolo.features.verify import info

    found = info(directory)
    if action is Action.info:
        print_info(found, json)
    else:
        _verify(found, data, json)


def print_info(found: StoreInfo, json: Path | None) -> None:
    if json is not None:
        write_json(_described(found), json)
    if str(json) != "-":
        _show(found)


def _described(found: StoreInfo) -> dict[str, Any]:
    splits = {split.name: split._asdict() for split in found.splits}
    replaced = {} if found.replaced is None else {"replaced": _described(found.replaced)}
    return {"directory": str(found.directory), "manifest": found.manifest.model_dump(), "splits": splits} | replaced


def _show(found: StoreInfo) -> None:
    manifest = found.manifest
    from rich import print as show
    from rich.table import Table

    table = Table("", "", title=str(found.directory), show_header=False)
    for name, value in manifest.extractor.items():
        table.add_row("extractor" if name == "name" else f"extractor's {name}", value)
    table.add_row("images", f"{manifest.geometry} to {manifest.size} px, {manifest.views} view(s) of each")
    levels = ", ".join(f"stride {level.stride}: {level.channels} channels" for level in manifest.level_list)
    table.add_row("levels", f"{levels}, as {manifest.dtype}")
    for split in found.splits:
        missing = "" if split.present == split.shards else f", {split.shards - split.present} of them MISSING"
        table.add_row(
            split.name, f"{split.images} images in {split.shards} shards{missing}, {split.bytes / 1e6:.1f} MB"
        )
    table.add_row("written with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    show(table)
    if found.replaced is not None:
        _show(found.replaced)


def _verify(found: StoreInfo, data: Path | None, json: Path | None) -> None:
    from mtyolo.features.verify import verify

    splits = [] if data is None else _splits_of(found, data)
    total, done = found.shards, 0
    with progress_bar("verify") as progress:

        def report(shards: int) -> None:
            nonlocal done
            done += shards
            progress(done, total)

        problems = verify(found.directory, splits, report)
    if json is not None:
        write_json({"directory": str(found.directory), "problems": problems}, json)
    if str(json) != "-":
        for problem in problems:
            print(problem)
        print(f"{found.directory}: {total} shards read, {len(problems)} problem(s)")
    if problems:
        raise typer.Exit(DAMAGED)


def _splits_of(found: StoreInfo, data: Path) -> list[Split]:
    """Those of the store that the data has; other programs may call theirs as they like."""
    from mtyolo.data.sources import SPLITS, read_data
    from mtyolo.data.split import load_split

    source = read_data(data)
    known = [split.name for split in found.splits if split.name in SPLITS and source.has(split.name)]
    alone = [split.name for split in found.splits if split.name not in known]
    if alone:
        say(f"{', '.join(alone)}: {data} has no such split, so verified without its images")
    return [load_split(source, name) for name in known]
