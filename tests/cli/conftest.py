"""A small drawn data set, and models small enough to run in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtyolo.data.shapes import make_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of 8 + 4 drawn pictures of 64 pixels."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=4, size=64)
