"""Files of a picture each, read into one batch; and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtyolo.distill.stacked import read_shapes, read_stacked
from mtyolo.errors import StoreError


def write(path: Path, *, seed: int = 0, side: int = 4, dtype: torch.dtype = torch.float16) -> Path:
    drawn = torch.Generator().manual_seed(seed)
    tensors = {"detect.0": (side, side, 3, 7), "detect.1": (2, 2, 3, 7), "feature.10": (side, 5)}
    save_file({name: torch.randn(shape, generator=drawn).to(dtype) for name, shape in tensors.items()}, path)
    return path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def too_long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def no_tensors(path: Path) -> None:
    path.write_bytes(b"no tensors")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def endless_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def other_size(path: Path) -> None:
    write(path, side=5)


def single_precision(path: Path) -> None:
    write(path, dtype=torch.float32)


def a_list_as_header(path: Path) -> None:
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


def missing(path: Path) -> None:
    path.unlink()


DAMAGES = [
    cut_off,
    too_long,
    no_tensors,
    empty,
    endless_header,
    other_size,
    single_precision,
    a_list_as_header,
    missing,
]


def test_it_is_what_the_library_reads_and_torch_stacks(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(3)]
    found = read_stacked(paths)
    one_by_one = [load_file(path) for path in paths]
    assert found.keys() == one_by_one[0].keys()
    for name, array in found.items():
        assert torch.equal(torch.from_numpy(array), torch.stack([one[name] for one in one_by_one]))
    assert read_shapes(paths[0]) == {name: list(tensor.shape) for name, tensor in one_by_one[0].items()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_file_that_is_not_as_it_was_written_is_named(
    tmp_path: Path, damage: Callable[[Path], None], which: str
) -> None:
    paths = {name: write(tmp_path / f"{name}.safetensors") for name in ("first", "second", "third")}
    damage(paths[which])
    # Of files that differ, the first is taken for right.
    named = "second" if which == "first" and damage is other_size else which
    with pytest.raises(StoreError, match=rf"{named}\.safetensors: damaged: .*remove it, it will be made again"):
        read_stacked(list(paths.values()))
