"""Freed memory is kept within, and goes back afterwards."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch.utils.data import Dataset

from mtyolo import memory
from mtyolo.data.loader import Loader
from mtyolo.memory import KEPT, SETTINGS, STOCK, give_back, kept_memory


class Library:
    """Stands in for glibc, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.trimmed = 0

    def mallopt(self, name: int, value: int) -> int:
        self.told.append((name, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trimmed += 1
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    found = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: found)
    return found


def test_it_is_kept_within_and_given_back_by_the_last(library: Library) -> None:
    with kept_memory():
        with kept_memory():
            assert library.told == list(KEPT.items())
        assert not library.trimmed
    assert library.told == [*KEPT.items(), *STOCK.items()]
    assert library.trimmed == 1


def test_it_is_given_back_after_an_error_and_by_a_generator_that_is_left(library: Library) -> None:
    @kept_memory()
    def fails() -> None:
        raise ValueError

    def numbers() -> Iterator[int]:
        with kept_memory():
            yield from range(3)

    with pytest.raises(ValueError):  # noqa: PT011
        fails()
    assert library.trimmed == 1
    left = numbers()
    next(left)
    left.close()
    assert library.trimmed == 2


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_environment_stay(library: Library, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with kept_memory():
        pass
    assert not library.told


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_memory():
        pass


@pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc, or the environment has settings")
def test_a_map_takes_the_place_of_the_one_before_it() -> None:
    import resource

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(20_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    plain = min(pages() for _ in range(3))
    if plain < 1000:
        pytest.skip("the system gives memory in huge pages here")
    with kept_memory():
        turns = [pages() for _ in range(20)]  # glibc sets aside seven scraps between aligned maps before it joins them
        assert turns[-1] < plain / 10
    assert pages() > plain / 10, "afterwards the system gives it anew"


def test_other_threads_have_heaps_of_their_own(library: Library) -> None:
    def work() -> None:
        with kept_memory():
            pass

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert not library.told


def test_it_can_be_given_back_on_the_way(library: Library) -> None:
    with kept_memory():
        give_back()
        assert library.trimmed == 1
    assert library.told == [*KEPT.items(), *STOCK.items()]


class OwnMemory(Dataset[int]):
    """Bytes of the process that asks, without files."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory of processes, from Linux")
def test_processes_that_read_images_do_not_hold_what_was_freed() -> None:
    """Else they take their part of it as soon as this process writes there again."""
    size = 2**30
    with kept_memory():
        (small,) = Loader(OwnMemory(), batch_size=None, num_workers=1)  # type: ignore[arg-type]
        maps = [torch.ones(size // 16, dtype=torch.uint8) for _ in range(16)]
        del maps
        (found,) = Loader(OwnMemory(), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert found < small + size / 2  # type: ignore[operator]
