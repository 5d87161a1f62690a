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
        (RuntimeError("unexpected pos 64\nat inline_container.cc"), "unexpected pos 64;"),
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
