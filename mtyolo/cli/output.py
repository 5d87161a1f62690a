"""How commands speak: results on stdout; progress and remarks on stderr, so that `--json -` can be piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 10_000
"""Letters of a table."""
STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")
"""Folders of what is open already, or is no file."""


def say(text: str) -> None:
    """A remark, not a result."""
    print(text, file=sys.stderr)


def write_json(content: Any, path: Path) -> None:
    """To a file, whose folder is made and which is whole or absent; to the standard output for `-`; into a pipe.

    Raises MtyoloError naming the file.
    """
    from mtyolo.files import write_whole

    text = json.dumps(content, indent=2)
    if str(path) == "-":
        print(text)
    elif _is_stream(path):
        _write_into(path, text + "\n")
    else:
        write_whole(path, (text + "\n").encode())


def spare(read: Iterable[Path], *written: Path | None) -> None:
    """Before anything is written. Raises MtyoloError for a file that is read, too, or that is to be written twice."""
    from mtyolo.errors import MtyoloError

    taken = {path.resolve() for path in read}
    for path in (path for path in written if path is not None and str(path) != "-"):
        if path.resolve() in taken:
            raise MtyoloError(f"{path}: would be written over, and is needed; name another file")
        taken.add(path.resolve())


def _is_stream(path: Path) -> bool:
    """Does it pass on what is written, as /dev/stdout does, also where that is a file in the end?"""
    return str(path.parent) in STREAMS or path.is_fifo() or path.is_char_device()


def _write_into(path: Path, text: str) -> None:
    from mtyolo.errors import MtyoloError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MtyoloError(f"{path}: can not be written: {error.strerror}; name a file, or -") from None


def show_table(table: Table) -> None:
    """As wide as it is, where the terminal is narrower, and into files: broken words and cut numbers tell nothing."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with (done, of all). Gone when done; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
