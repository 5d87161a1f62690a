"""kill -9 at random moments, then resume."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import FORKSERVER, start
from tiny_features import extract_slowly, make_images

from mtyolo.features.verify import verify

KILLS = 20
IMAGES = 100


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_store_killed_at_random_moments_is_byte_identical_once_resumed(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", IMAGES)
    chance, started = random.Random(0), FORKSERVER.Event()

    def extraction(folder: Path, seconds: float | None) -> bool:
        """Run it, kill it after so many seconds of work; did it come to its end?"""
        started.clear()
        process = start(extract_slowly, data, folder, started)
        assert started.wait(60)
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode == 0

    assert extraction(tmp_path / "free", None)
    begun = time.perf_counter()
    assert extraction(tmp_path / "again", None)
    longest = (time.perf_counter() - begun) / 2
    expected = contents(tmp_path / "free")
    assert contents(tmp_path / "again") == expected
    folder, kills = tmp_path / "killed", 0
    while kills < KILLS:
        if extraction(folder, chance.uniform(0, longest)):
            assert contents(folder) == expected
            shutil.rmtree(folder)
            continue
        kills += 1
        there = contents(folder)
        assert all(digest == expected[name] for name, digest in there.items() if name in expected)
    assert extraction(folder, None)
    assert contents(folder) == expected
    assert verify(folder) == []
