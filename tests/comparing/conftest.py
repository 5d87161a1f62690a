"""Runs, as far as a comparison looks at them."""

from __future__ import annotations

from pathlib import Path

import pytest
from left_runs import Leave, leave_run


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Leaves a run of this name and these metrics."""

    def leave(name: str, *metrics: dict[str, float], losses: tuple[str, ...] = ("detect",)) -> Path:
        return leave_run(tmp_path / name, metrics, losses)

    return leave
