"""Files that are whole or absent: written under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mtyolo.errors import MtyoloError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; what stands there at the end is flushed to the disk and becomes `path`.

    Makes the folder. Raises MtyoloError where nothing can be written, and leaves what was there before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors gives files to their owner alone
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors say it in their own ways
        raise MtyoloError(
            f"{path}: can not be written: {_reason(error)}; what was there before is unharmed: make room, or see to "
            "the folder's rights, and go on"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent, also when the power goes. Raises MtyoloError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
