"""Files that are there, or are named; that become whole or absent: written under another name, then renamed. And
folders with one writer at a time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from mtyolo.config.model import resolve_beside, shipped_configs
from mtyolo.config.reading import nearest
from mtyolo.errors import CheckpointError, ConfigError, MtyoloError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WRITING = ("os error", "I/O error", "PytorchStreamWriter", "inline_container")
"""In messages of safetensors and torch, which have no error of their own for a full disk."""
LOCK_SECONDS = 0.05
"""Between looks whether a lock is free."""
LETTERS_KEPT = 40
"""Of a name in the temporary one, which is longer: file systems take 255 bytes, and a letter has up to four."""

EXPORTED = ".onnx"
WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors", EXPORTED)
BEST, LAST = "best.safetensors", "last.safetensors"
"""Weights in a run's folder."""


def existing(path: Path | str) -> Path:
    """A file of weights. Raises CheckpointError where there is none, naming what a run left in its place."""
    path = Path(path)
    if path.is_dir():
        of_run = next((file for name in (BEST, LAST) if (file := path / name).is_file()), None)
        raise CheckpointError(f"{path}: is a folder; give {of_run or 'a file of weights, .pt or .safetensors'}")
    if not path.is_file():
        last = path.with_name(LAST)
        instead = path.name == BEST and last.is_file()
        hint = f"; {last} is there: of epochs that were not validated none is the best" if instead else ""
        raise CheckpointError(f"{path}: no such file (looked at {path.absolute()}){hint}")
    return path


def exported_name(path: Path | str) -> Path:
    """Where an exported network is to be written. Raises ConfigError for a name by which no command would know it."""
    path = Path(path)
    if path.suffix != EXPORTED:
        raise ConfigError(f"{path}: is written as ONNX; name it {path.stem}{EXPORTED}")
    return path


def model_file(name: str | Path) -> Path:
    """As named, without its suffix, or one that ships with mtyolo. Raises ConfigError where there is none."""
    for candidate in (str(name), f"{name}.yaml"):
        found = resolve_beside(candidate, Path("model.yaml"))
        if found is not None and found.suffix in WEIGHT_SUFFIXES:
            raise ConfigError(
                f"{found}: holds weights and is no model file; name one, such as yolov5n.yaml, and this as its weights "
                "(mtyolo.open_model opens weights by themselves)"
            )
        if found is not None:
            return found
    if os.path.isdir(name):
        existing(name)  # says what is in it
    shipped = [path.name for path in sorted(shipped_configs().glob("*.yaml"))]
    raise ConfigError(f"{name}: no such model file here or in mtyolo; {nearest(Path(name).name, shipped)}")


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Gives a name beside `path` to write to; what stands there at the end becomes `path`.

    Makes the folder. Of a link, it is the file behind it that is replaced. lasting: flush it to the disk first; not for
    what is easily made again. Raises MtyoloError where nothing can be written, or where a folder, pipe or device would
    be replaced, and leaves what was there before.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:LETTERS_KEPT]}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            raise MtyoloError(f"{path}: is a folder, pipe or device, which would be replaced by a file; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors gives files to their owner alone
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(words in str(error) for words in WRITING):
            raise
        raise MtyoloError(
            f"{path}: can not be written: {_reason(error)}; what was there before is unharmed: {_remedy(error)}"
        ) from None
    finally:
        with suppress(OSError):  # which would hide what went wrong before
            temporary.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent, also when the power goes. Raises MtyoloError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def locked(folder: Path, *, wait: float = 0) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made, where its file system has locks. The lock goes with the
    process, however that ends. wait: seconds. Raises MtyoloError where another one still has it then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtyoloError(f"{folder}: no folder can be made there: {_reason(error)}; name another") from None
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + wait
        while not _locked(descriptor):
            if time.monotonic() > until:
                raise MtyoloError(f"{folder}: another process is writing there; wait for it, or name another folder")
            time.sleep(LOCK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the disk may be full: " + next(
        (line for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "give it a shorter name"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file stands where its folder would be: name another place"
    return "make room, or see to the folder's rights, and go on"
