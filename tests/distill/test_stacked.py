"""Files of a picture each, read into one batch; and what may be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtyolo.distill.stacked import read_layout, read_stacked
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


def single_precision(path: Path) -> None:
    write(path, dtype=torch.float32)


def missing(path: Path) -> None:
    path.unlink()


def headed(header: object) -> Callable[[Path], None]:
    """Another header before the same values."""

    def damage(path: Path) -> None:
        content, text = path.read_bytes(), json.dumps(header).encode()
        values = content[8 + int.from_bytes(content[:8], "little") :]
        path.write_bytes(len(text).to_bytes(8, "little") + text + values)

    return damage


def described(shape: object, begin: int = 0, end: int = 784) -> dict[str, object]:
    return {"detect.0": {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}}


HEADERS = {
    "a list": [],
    "no tensors": {},
    "words": {"detect.0": "words"},
    "no shape": {"detect.0": {"dtype": "F16", "data_offsets": [0, 8]}},
    "a scalar": described([], 0, 2),
    "fractions": described([2.0, 196]),
    "negative": described([-2, -196]),
    "huge": described([10**30, 0], 0, 0),
    "shape and place differ": described([4, 4]),
    "not from the beginning": described([392], 2, 786),
    "too little": described([2, 2], 0, 8),
}
DAMAGES = [cut_off, too_long, no_tensors, empty, endless_header, single_precision, missing]
DAMAGES += [pytest.param(headed(header), id=f"header: {name}") for name, header in HEADERS.items()]


def test_it_is_what_the_library_reads_and_torch_stacks(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(3)]
    found = read_stacked(paths)
    one_by_one = [load_file(path) for path in paths]
    assert found.keys() == one_by_one[0].keys()
    for name, array in found.items():
        assert torch.equal(torch.from_numpy(array), torch.stack([one[name] for one in one_by_one]))
    assert read_layout(paths[0]) == {name: tuple(tensor.shape) for name, tensor in one_by_one[0].items()}


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(3)]
    whole = read_stacked(paths)
    for only, names in (("feature.", ["feature.10"]), ("detect.", ["detect.0", "detect.1"])):
        found = read_stacked(paths, only=only)
        assert sorted(found) == names
        assert all((found[name] == whole[name]).all() for name in names)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_file_that_is_not_as_it_was_written_is_named(
    tmp_path: Path, damage: Callable[[Path], None], which: str
) -> None:
    paths = {name: write(tmp_path / f"{name}.safetensors") for name in ("first", "second", "third")}
    damage(paths[which])
    with pytest.raises(StoreError, match=rf"{which}\.safetensors: damaged: .*remove it, it will be made again"):
        read_stacked(list(paths.values()))


def test_files_that_do_not_belong_together_are_both_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{side}.safetensors", side=side) for side in (4, 5)]
    with pytest.raises(StoreError, match=r"5\.safetensors: holds other tensors than .*4\.safetensors; remove both"):
        read_stacked(paths)


def test_a_header_may_be_written_differently(tmp_path: Path) -> None:
    """As other versions of the library may."""
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(2)]
    before = read_stacked(paths)
    content = paths[1].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"written": "elsewhere"}}
    headed(header)(paths[1])
    for name, array in read_stacked(paths).items():
        assert (array == before[name]).all()
