"""A file is whole or absent, and readable to whom the user's umask says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mtyolo.errors import MtyoloError
from mtyolo.files import replacing, write_whole
from mtyolo.training.records.run import UNFINISHED


def test_a_new_file_has_the_rights_that_the_user_gives_files(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "new" / "weights.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)  # by itself readable to its owner alone
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "weights.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (RuntimeError("unexpected pos 64\nat inline_container.cc"), "the disk may be full: unexpected pos 64;"),
    ],
)
def test_what_can_not_be_written_leaves_what_was_there(error: Exception, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_whole(path, b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(MtyoloError, match=f"results.csv: can not be written: {reason}"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [KeyError("a mistake"), RuntimeError("tensors share memory"), SafetensorError("none")]
)
def test_other_errors_are_not_hidden(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), replacing(tmp_path / "results.csv"):
        raise error
    assert not list(tmp_path.iterdir())


def test_behind_a_link_it_is_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in ("there.csv", "new.csv"):
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "there.csv").write_bytes(b"old")
    for name in ("there.csv", "new.csv"):
        write_whole(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "store" / name).read_bytes() == b"new"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(MtyoloError, match=f"{name}: is a folder, pipe or device"):
            write_whole(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 120 + ".tar.gz", "state.pt"])
def test_a_long_name_has_a_short_temporary_one_that_is_known_as_such(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as temporary:
        assert UNFINISHED.fullmatch(temporary.name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(MtyoloError, match=r"can not be written: File name too long.*give it a shorter name"):
        write_whole(tmp_path / ("a" * 256), b"new")


def test_what_went_wrong_is_said_where_the_folder_goes_away(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MtyoloError, match=r"file/results\.csv: can not be written: .*: name another place"):
        write_whole(tmp_path / "file" / "results.csv", b"new")
