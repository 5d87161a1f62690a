"""What `mtyolo extract --dry-run` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtyolo.cli.output import write_json

if TYPE_CHECKING:
    from mtyolo.features.estimate import Estimate
    from mtyolo.features.planning import ExtractOptions


def say_estimate(found: Estimate, settings: ExtractOptions, images: int | None, json: Path | None) -> None:
    if images is not None:
        found = found._replace(images=images)
    if json is not None:
        seconds = found.seconds(settings.share[1], settings.workers)
        write_json(found._asdict() | {"bytes": found.bytes, "seconds": seconds, "gain": found.gain}, json)
    if str(json) != "-":
        _print_estimate(found, settings)


def _print_estimate(found: Estimate, settings: ExtractOptions) -> None:
    from rich import print as show
    from rich.table import Table

    processes = settings.share[1]
    table = Table("", "", title="What the store would cost and bring", show_header=False)
    table.add_row("images, views of each", f"{found.images}, {found.views}")
    table.add_row("on disk", f"{found.bytes / 1e9:.2f} GB ({found.bytes_per_image / 1e6:.3f} MB an image)")
    table.add_row("one image: read and decode", f"{found.drawing * 1e3:.1f} ms in one thread")
    table.add_row("one image: extractor", f"{found.extracting * 1e3:.1f} ms")
    table.add_row("one image: read from the store", f"{found.reading * 1e3:.2f} ms")
    table.add_row("one image: training step on features", f"{found.learning * 1e3:.1f} ms")
    hours = found.seconds(processes, settings.workers) / 3600
    table.add_row(
        "time to write", f"{hours:.2f} h with {processes} process{'es' if processes > 1 else ''} like this one"
    )
    table.add_row("an epoch afterwards", f"{found.gain:.1f} times as fast as online")
    table.add_row("worth it from", f"{found.epochs_to_pay:.1f} epochs on")
    show(table)
